"""Predictions on new rows with the tuned model of a run, batch by batch: memory does not grow with the files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched, islice
from pathlib import Path
from typing import Any

from pipelines.checks.hardware import locate_hardware_errors
from pipelines.console.plain_text import count
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors, read_notes
from pipelines.data.sources import open_source, source_digests
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.errors import DataError, Problem, RunError
from pipelines.evaluation.completions import COMPLETIONS_FORMAT, Completion
from pipelines.forgetting.continual import existing_starting_model
from pipelines.modeling.content_hash import fingerprint
from pipelines.prediction import completers
from pipelines.prediction.completers import Batch, CompleteBatches
from pipelines.prediction.models import tuned_job, tuned_prompt_format
from pipelines.prediction.rows import PromptRows, SourceRow, check_prompt_lengths, source_rows
from pipelines.storage.files import digest, file_sha256
from pipelines.storage.run_folder import Run
from pipelines.version import __version__

COLUMNS_OF = {
    "tuned": ("prediction", "prediction_finish_reason", "prediction_reasoning"),
    "base": ("base_prediction", "base_prediction_finish_reason", "base_prediction_reasoning"),
}
"""The columns that `predict` adds for a model: its completion; why it ends; and, where prompts ask for reasoning and
for completions that have some, the reasoning."""
COLUMNS = (*COLUMNS_OF["tuned"], *COLUMNS_OF["base"])
OUTPUT_BATCH_SIZE = 512
"""Rows that are completed, sorted by length, before any of them is written: at most these are lost if the process is
killed. It decides which prompts are batched together, so the same number gives the same output."""
LARGE_INPUT_BYTES = 16 << 20
"""Size of the files from which the check of their rows is shown as a stage of its own."""


@dataclass(frozen=True)
class PredictedBatch:
    """Rows with their predictions. `num_cut`: how many of them were cut inside their reasoning."""

    rows: list[dict[str, Any]]
    num_cut: int


class RowPredictor:
    """Completes the rows of files with the tuned model of a run.

    The files are read twice: `check` reads all rows before the model is loaded, `batches` completes them.
    """

    def __init__(
        self,
        run: Run,
        files: Sequence[str | Path],
        task: str | None,
        raw: bool = False,
        with_base: bool = False,
        workers: int | None = None,
    ) -> None:
        """Opens the files; loads no model.

        Args:
            files: paths, patterns, folders or data sets on the Hub, see `open_source`.
            task, raw: see `PromptRows`.
            with_base: whether the base model completes the rows as well.
            workers: the number of Ray workers, 0 for that of the config or one per GPU; None computes in this process.

        Raises DataError for files that do not exist, RunError for a run that is not trained or lacks the task.
        """
        if with_base and workers is not None:
            raise RunError("--base does not work with --ray; remove one of them")
        self.run, self.job = run, tuned_job(run)
        self.prompts = PromptRows(self.job, task, str(run.folder), raw, run.manifest)
        self.options = {"task": task, "raw": raw, "base": with_base}
        self.with_base, self.workers = with_base, workers
        self.source = open_source([str(file) for file in files])
        self._file_states = self._current_file_states()

    @cached_property
    def prompt_format(self) -> PromptFormat:
        return tuned_prompt_format(self.run, self.job)

    @cached_property
    def input_paths(self) -> list[Path]:
        """The files on the disk."""
        return [part for file in self.source.files for part in file.parts]

    def identity(self) -> dict[str, Any]:
        """What the predictions depend on: only predictions of the same identity may stand in one file."""
        pipeline = self.job.pipeline.model_dump(
            mode="json", exclude={"report": True, "forgetting": True, "split": True, "mix": True}
        )
        return {
            "files": [file.name for file in self.source.files],
            "rows": digest(source_digests(self.source, file_sha256)),
            "options": self.options,
            "model": digest(fingerprint(self.run.path("model")), fingerprint(self._starting_model)),
            "config": digest(pipeline, self.job.generation, self.job.template_source, self.job.prompt_date),
            "version": f"{__version__} ({COMPLETIONS_FORMAT})",
        }

    @cached_property
    def _starting_model(self) -> Path:
        return existing_starting_model(self.job, self.run)

    def check(self, reporter: ConsoleReporter, max_columns: int = sys.maxsize) -> int:
        """Reads all rows, fills their templates and tokenizes their prompts. Returns the number of rows.

        Raises DataError with every row that cannot be used: for the templates, the length of its prompt, or a column
        that `predict` writes; and for rows with more than `max_columns` different columns.
        """
        is_large = sum(path.stat().st_size for path in self.input_paths) > LARGE_INPUT_BYTES
        for note in self.source.notes:
            reporter.note(note)
        with reporter.status("Checking the rows") if is_large else contextlib.nullcontext():
            errors, num_rows = RowErrors(), 0
            examples = self.prompts.examples(source_rows(self.source.files), errors)
            examples = self._with_checked_columns(examples, errors, max_columns)
            tokenized = tokenize_examples(examples, self.prompt_format, errors)
            for batch in batched(tokenized, OUTPUT_BATCH_SIZE):
                check_prompt_lengths(batch, self.prompt_format.context_length, errors)
                num_rows += len(batch)
            errors.raise_if_any()
        for file in self.source.files:
            for note in read_notes(file.path):
                reporter.note(f"{file.name}: {note}")
        return num_rows

    def _with_checked_columns(
        self, examples: Iterator[Example], errors: RowErrors, max_columns: int
    ) -> Iterator[Example]:
        written = COLUMNS if self.with_base else COLUMNS_OF["tuned"]
        columns: set[str] = set()
        for example in examples:
            for column in written:
                if column in example.fields:
                    message = f"has a column `{column}`, which predict writes; rename it to keep it"
                    errors.add(example.file, example.row_number, message)
            if len(columns) <= max_columns:
                columns.update(example.fields)
                if len(columns) > max_columns:
                    message = f"the rows have more than {max_columns:,} different columns by now; write them as .jsonl"
                    errors.add(example.file, example.row_number, message)
            yield example

    def batches(
        self,
        num_rows: int,
        reporter: ConsoleReporter,
        start: int = 0,
        batch_size: int = OUTPUT_BATCH_SIZE,
        one_bar: bool = False,
    ) -> Generator[PredictedBatch]:
        """Loads the model and yields the rows from index `start` on with their predictions, in order.

        num_rows: the number of all rows, which `check` has returned.
        one_bar: whether one progress bar is drawn for all batches, also while the caller handles one. While a bar is
            drawn, what is written to the standard output appears on that of errors.

        Raises DataError if a file has been changed since `check`.
        """
        if start >= num_rows:
            return
        with contextlib.ExitStack() as stack:
            complete_batches = self._open_models(stack, reporter)
            per_row, unit = (2, "completions") if self.with_base else (1, "rows")
            title = "Completions" if start == 0 else f"Completions, rows {start + 1:,} to {num_rows:,}"
            advance = (
                stack.enter_context(reporter.progress(title, per_row * (num_rows - start), unit)) if one_bar else None
            )

            def progress(num_completions: int) -> None:
                if advance is not None:
                    advance(num_completions)

            completed = complete_batches(self._read_batches(start, batch_size), progress)
            for first in range(start, num_rows, batch_size):
                size = min(batch_size, num_rows - first)
                part = "" if size == num_rows else f", rows {first + 1:,} to {first + size:,} of {num_rows:,}"
                with contextlib.ExitStack() as bar:
                    if not one_bar:
                        advance = bar.enter_context(reporter.progress(f"Completions{part}", per_row * size, unit))
                    bar.enter_context(locate_hardware_errors(self.job))
                    batch, by_model = next(completed)
                rows = [
                    _with_predictions(row, {name: completions[index] for name, completions in by_model.items()})
                    for index, row in enumerate(batch)
                ]
                num_cut = sum(completion.reasoning_cut for completion in by_model["tuned"])
                yield PredictedBatch(rows, num_cut)

    def _read_batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """The tokenized prompts of the rows from index `start` on, `batch_size` at a time."""
        rows: Iterator[SourceRow] = islice(source_rows(self.source.files), start, None)
        try:
            for batch in batched(rows, batch_size):
                errors = RowErrors()
                tokenized = list(tokenize_examples(self.prompts.examples(batch, errors), self.prompt_format, errors))
                errors.raise_if_any()
                self._check_unchanged()
                yield tokenized
        except DataError:
            self._check_unchanged()  # which is then the reason
            raise

    def _check_unchanged(self) -> None:
        """Raises DataError if a file has been changed since the predictor was created."""
        for path, before, now in zip(self.input_paths, self._file_states, self._current_file_states(), strict=True):
            if before != now:
                raise DataError(Problem("has been changed while its rows were completed", str(path)))

    def _current_file_states(self) -> list[tuple[int, int]]:
        """Size and modification time of each file."""
        try:
            statuses = [path.stat() for path in self.input_paths]
        except OSError as error:
            raise DataError(Problem(f"cannot be read: {error.strerror}", str(error.filename))) from None
        return [(status.st_size, status.st_mtime_ns) for status in statuses]

    def _open_models(self, stack: contextlib.ExitStack, reporter: ConsoleReporter) -> CompleteBatches:
        if self.workers is not None:
            return completers.open_ray(self.run, self.job, self.workers, stack, reporter)
        open_models = completers.open_both if self.with_base else completers.open_tuned
        return open_models(self.run, self.job, reporter)


def _with_predictions(row: TokenizedExample, completions: Mapping[str, Completion]) -> dict[str, Any]:
    """The columns of the row and those of its predictions by model."""
    columns = dict(row.example.fields)
    for model, completion in completions.items():
        prediction, finish_reason, reasoning = COLUMNS_OF[model]
        columns |= {prediction: completion.text, finish_reason: completion.finish_reason}
        if row.example.reasoning is not None or completion.reasoning:
            columns[reasoning] = completion.reasoning or ""
    return columns


def warn_of_cuts(num_cut: int, num_rows: int, reporter: ConsoleReporter) -> None:
    """Warns of predictions that were cut inside their reasoning, if there are any."""
    if num_cut:
        cut = f"{num_cut:,} of {count(num_rows, 'prediction')}"
        reporter.warn(f"{cut} cut inside the reasoning, without an answer; raise max_reasoning_tokens")


def predict(
    run: Run,
    files: Sequence[str | Path],
    task: str | None,
    reporter: ConsoleReporter,
    raw: bool = False,
    with_base: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `files` in their order with two more columns.

    `prediction` is the completion, without the reasoning before it. `prediction_finish_reason` is "stop", or "length"
    if the completion was cut at its limit. Rows whose prompts ask for reasoning, or whose completions have some, also
    get `prediction_reasoning`. with_base adds the same columns of the base model, `base_prediction` and so on.

    All rows are checked before the iterator is returned, see `RowPredictor.check`. The iterator loads the model, and
    reads the files again.
    """
    predictor = RowPredictor(run, files, task, raw, with_base)
    return predicted_rows(predictor, predictor.check(reporter), reporter)


def predicted_rows(predictor: RowPredictor, num_rows: int, reporter: ConsoleReporter) -> Iterator[dict[str, Any]]:
    """Yields the rows of `predictor`, whose number `check` has returned, with their predictions."""
    num_cut = 0
    with contextlib.closing(predictor.batches(num_rows, reporter)) as batches:
        for batch in batches:
            yield from batch.rows
            num_cut += batch.num_cut
    warn_of_cuts(num_cut, num_rows, reporter)
