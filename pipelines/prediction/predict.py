"""Predictions on new rows with the tuned model of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.console.plain_text import count
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.readers import RowErrors
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.evaluation.completions import complete
from pipelines.prediction.models import load_tuned, tuned_job, tuned_prompt_format
from pipelines.prediction.rows import check_prompt_lengths, load_prompts
from pipelines.storage.run_folder import Run

PREDICTION, FINISH_REASON = "prediction", "prediction_finish_reason"
"""The columns that `predict` adds."""
REASONING = "prediction_reasoning"
"""The column that `predict` adds where prompts ask for reasoning, and for completions that have some."""
OUTPUT_BATCH_SIZE = 512
"""Rows that are completed before any of them is written: at most these are lost if the process is killed."""


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
