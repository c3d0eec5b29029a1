"""Predictions on new rows with the tuned model of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job, load_run_job
from pipelines.config.messages import did_you_mean
from pipelines.console.plain_text import count
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.row_formats import fill_row
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.templates import MissingColumnError
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.errors import DataError, RunError
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.forgetting.continual import existing_starting_model
from pipelines.registry import lazy_import
from pipelines.storage.files import os_errors_as_machine_error
from pipelines.storage.records import prompts_for_reasoning
from pipelines.storage.run_folder import Run
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    from pipelines.modeling import hardware
else:
    hardware = lazy_import("pipelines.modeling.hardware")  # torch: 3 s that an error in a file of rows does not need

PREDICTION, FINISH_REASON = "prediction", "prediction_finish_reason"
"""The columns that `predict` adds."""
REASONING = "prediction_reasoning"
"""The column that `predict` adds where prompts ask for reasoning, and for completions that have some."""
OUTPUT_BATCH_SIZE = 512
"""Rows that are completed before any of them is written: at most these are lost if the process is killed."""
USE_RAW = "; --raw uses the column `prompt` without a template"


def tuned_job(run: Run) -> Job:
    """The job of a run that has been trained. Raises RunError if it has not."""
    if "train" not in run.manifest["stages"]:
        raise RunError(f"{run.folder} has no tuned model yet; finish it with: {run.command}")
    return load_run_job(run.folder)


def load_prompts(
    job: Job,
    file: Path,
    task: str | None,
    run: str,
    raw: bool = False,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> list[Example]:
    """The rows of `file` as examples without a completion, each with its token limit.

    A row fills the template of its task: `task`, or the job's only one, or that in the row's column `task`. With `raw`
    its column `prompt` is the prompt, and the example has no task. `fields` are all columns of the row. `manifest` is
    that of the run, which says whether prompts ask for reasoning.

    Raises DataError with every row that cannot be used, RunError for a task that the run does not have.
    """
    tasks = job.pipeline.tasks
    if raw and task is not None:
        raise RunError("--raw uses the column `prompt` without a task's template; remove --task or --raw")
    if task is not None and task not in tasks:
        similar = did_you_mean(task, tasks)
        advice = f"did you mean {similar}?" if similar else f"it has {', '.join(tasks)}"
        raise RunError(f"{run} has no task {task!r}; {advice}")
    only_task = task or (next(iter(tasks)) if len(tasks) == 1 else None)
    examples, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        try:
            if raw:
                sample = parse_sample_prompt(row, file, number, job.system_prompt())
                examples.append(_with_limits(sample, job, manifest))
                continue
            name = only_task or _task_of(row, tasks)
            examples.append(
                _with_limits(
                    Example(
                        **_fill_prompt(job, name, row),
                        task=name,
                        file=str(file),
                        row_number=number,
                        fields=row,
                        template_kwargs=job.chat_template_kwargs(name),
                    ),
                    job,
                    manifest,
                )
            )
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return examples


def _with_limits(example: Example, job: Job, manifest: Mapping[str, Any]) -> Example:
    """The example, which asks for reasoning if the training rows of its task had some, with the limit of its
    completion."""
    task = example.task or None
    asked = prompts_for_reasoning(manifest, task)
    limit = job.completion_limit(task, with_reasoning=asked, max_new_tokens=example.max_new_tokens)
    turns = None if example.turns is None else replace(example.turns, with_reasoning=asked)
    reasoning = "" if asked and turns is None else None
    return replace(example, reasoning=reasoning, turns=turns, max_new_tokens=limit)


def _task_of(row: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    name = row.get("task")
    if name is None:
        hint = USE_RAW if "prompt" in row else ""
        raise DataError(f"the task is missing: add a column `task`, or --task ({', '.join(tasks)}){hint}")
    if not isinstance(name, str) or name not in tasks:
        similar = did_you_mean(name, tasks) if isinstance(name, str) else None
        advice = f"did you mean {similar}?" if similar else f"the run has {', '.join(tasks)}"
        raise DataError(f"unknown task {name!r:.60}; {advice}")
    return name


def _fill_prompt(job: Job, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the system turn and the conversation of a row, as keywords of an Example."""
    try:
        (filled,) = fill_row(job.pipeline.tasks[name], row, job.system_prompt(name), needs_answer=False)
    except MissingColumnError as error:
        # A row with a column `prompt` most likely needs no template.
        raise DataError(f"{error}{USE_RAW if 'prompt' in row else ''}") from None
    kwargs = job.chat_template_kwargs(name)
    turns = None if filled.turns is None else replace(filled.turns, template_kwargs=kwargs)
    return {"prompt": filled.prompt, "system": filled.system, "turns": turns}


def check_prompt_lengths(rows: Sequence[TokenizedExample], context_length: int) -> None:
    """Raises DataError with every row whose prompt leaves no token of the context for a completion."""
    errors = RowErrors()
    for row in rows:
        if len(row.prompt_ids) >= context_length:
            message = f"the prompt leaves no room for a completion in the model's context of {context_length} tokens"
            errors.add(row.example.file, row.example.row_number, f"{message}; shorten or drop the row")
    errors.raise_if_any()


def load_tuned(run: Run, job: Job) -> LoadedModel:
    """Loads the tuned model of a run, as the run's own evaluation does."""
    hardware.configure_hardware(job.pipeline.hardware)
    base = existing_starting_model(job, run)
    return LoadedModel.from_folder(base, job.chat_template_settings(), job.quantization).with_tuned_model(
        run.path("model")
    )


def tuned_prompt_format(run: Run, job: Job) -> PromptFormat:
    """The prompt format of a run's tuned model. Loads no model."""
    return PromptFormat.from_folder(existing_starting_model(job, run), job.chat_template_settings())


def predict(
    run: Run, file: Path, task: str | None, reporter: ConsoleReporter, raw: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `file` in their order with two more columns.

    PREDICTION is the completion, without the reasoning before it. FINISH_REASON is "stop", or "length" if the
    completion was cut at its limit. Rows whose prompts ask for reasoning, or whose completions have some, also get
    REASONING.

    All rows are checked before the iterator is returned, see `load_prompts` and `check_prompt_lengths`; a row that
    already has one of these columns is a DataError too. The iterator loads the model.
    """
    job = tuned_job(run)
    examples = load_prompts(job, file, task, str(run.folder), raw, run.manifest)
    errors = RowErrors()
    for example in examples:
        for column in (PREDICTION, FINISH_REASON, REASONING):
            if column in example.fields:
                errors.add(
                    example.file,
                    example.row_number,
                    f"has a column `{column}`, which predict writes; rename it to keep it",
                )
    errors.raise_if_any()
    prompt_format = tuned_prompt_format(run, job)
    rows = list(tokenize_examples(examples, prompt_format))
    check_prompt_lengths(rows, prompt_format.context_length)
    return _predict_rows(run, job, rows, reporter)


def _predict_rows(
    run: Run, job: Job, rows: Sequence[TokenizedExample], reporter: ConsoleReporter
) -> Iterator[dict[str, Any]]:
    with reporter.status("Loading the tuned model"):
        loaded = load_tuned(run, job)
    start = num_cut = 0
    for batch in batched(rows, OUTPUT_BATCH_SIZE):
        part = "" if len(batch) == len(rows) else f", rows {start + 1} to {start + len(batch)} of {len(rows)}"
        start += len(batch)
        # One bar per batch: nothing is drawn while its rows are written.
        with reporter.progress(f"Completions{part}", len(batch), "rows") as progress:
            limits = [row.example.max_new_tokens or 0 for row in batch]
            prompts = [row.prompt_ids for row in batch]
            completions = complete(loaded, prompts, job.generation, limits, progress, seed=job.pipeline.seed)
        num_cut += sum(completion.reasoning_cut for completion in completions)
        for row, completion in zip(batch, completions, strict=True):
            has_reasoning = row.example.reasoning is not None or completion.reasoning
            reasoning = {REASONING: completion.reasoning or ""} if has_reasoning else {}
            prediction = {PREDICTION: completion.text, FINISH_REASON: completion.finish_reason}
            yield {**row.example.fields, **prediction, **reasoning}
    if num_cut:
        cut = f"{num_cut:,} of {count(len(rows), 'prediction')}"
        reporter.warn(f"{cut} cut inside the reasoning, without an answer; raise max_reasoning_tokens")


def check_output(output: Path, file: Path) -> None:
    """Raises RunError if predictions cannot or must not be written to `output`."""
    if output.is_dir():
        raise RunError(f"--output {output} is a folder; name a file")
    if output.resolve() == file.resolve():
        raise RunError(f"--output {output} is the input file, which would be overwritten; name another file")


def write_predictions(rows: Iterator[dict[str, Any]], output: Path, reporter: ConsoleReporter) -> None:
    """Writes JSON Lines to `output`.partial, which replaces `output` when it is complete.

    If the iterator raises, `output` stays as it was and the partial file keeps the rows so far.
    """
    partial = output.with_name(output.name + ".partial")
    count = 0
    with os_errors_as_machine_error(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as lines:
                for row in rows:
                    lines.write(dump(row) + "\n")
                    count += 1
                lines.flush()
                os.fsync(lines.fileno())
            partial.replace(output)
        except BaseException:
            if count:
                reporter.warn(f"{partial} has the predictions of the first {count} rows")
            else:
                partial.unlink(missing_ok=True)
            raise
