"""Stage `prepare`: checks the rows and writes their tokens to the folder `data/` of the run."""

from __future__ import annotations

from typing import Any

from pipelines.checks.chat_template import load_checked_prompt_format, template_notes
from pipelines.checks.dataset import DatasetChecks
from pipelines.checks.files import source_notes
from pipelines.checks.findings import raise_on_errors
from pipelines.data.examples import HeldOutRows, load_examples
from pipelines.data.row_reasoning import RowReasoning
from pipelines.data.sources import SPLITS, describe_data, open_source, source_sha256
from pipelines.data.tokenize_rows import tokenize_examples, write_splits
from pipelines.data.too_long import TooLongRows
from pipelines.modeling.base_models import context_length
from pipelines.stages.context import StageContext
from pipelines.storage.records import TaskData


def prepare_data(context: StageContext) -> None:
    """Writes `data/{train,validation,test}.arrow`; the manifest gets the counts and digests of every task's data.

    Raises DataError for rows that cannot be trained on; nothing is written then. Warnings are reported and recorded.
    """
    job, run = context.job, context.run
    with context.reporter.status("Preparing rows"):
        prompt_format = load_checked_prompt_format(job, context.starting_model_folder)
        checks = DatasetChecks(job, prompt_format, context_length(context.starting_model_folder))
        reasoning = RowReasoning(job, prompt_format.reasoning_markers, prompt_format)
        rows = HeldOutRows()
        tokenized = tokenize_examples(reasoning.apply(load_examples(job.pipeline, rows)), prompt_format)
        too_long = TooLongRows(job, prompt_format, checks.max_length)
        write_splits(checks.observe_all(too_long.apply(tokenized)), run.path("data"))
        findings = checks.findings()
    raise_on_errors(findings)
    for note in [*source_notes(job), *template_notes(job, prompt_format), *reasoning.notes, *rows.notes(job.pipeline)]:
        context.reporter.note(note)
    warnings = [*reasoning.warnings, *too_long.warnings, *(str(finding.problem) for finding in findings)]
    for warning in warnings:
        context.reporter.warn(warning)
    run.update(
        data=_data_entries(context, checks, reasoning, too_long, rows),
        warnings=warnings,
        prompt_date=job.prompt_date,
    )


def _data_entries(
    context: StageContext,
    checks: DatasetChecks,
    reasoning: RowReasoning,
    too_long: TooLongRows,
    rows: HeldOutRows,
) -> dict[str, Any]:
    """The manifest's entry per task: rows per split, its data, its digest, notes on labels."""
    entries = {}
    for name, task in context.job.pipeline.tasks.items():
        with_reasoning = reasoning.train_with_reasoning(name)
        data = TaskData(
            **{split: checks.counts[name, split] for split in SPLITS},
            file=describe_data(task.data),
            sha256=source_sha256(open_source(task.data), context.file_sha256),
            train_with_reasoning=with_reasoning and with_reasoning - too_long.dropped_reasoning[name],
            dropped=too_long.per_split(too_long.dropped, name),
            truncated=too_long.per_split(too_long.truncated, name),
            drawn=rows.drawn(name),
            notes=[*too_long.notes(name), *checks.label_notes(name)],
        )
        entries[name] = data.model_dump()
    return entries
