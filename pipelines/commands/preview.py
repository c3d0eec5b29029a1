"""`alfine preview`: tokenized rows, sequence lengths and the learning rate schedule, as training will see them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from pipelines.checks.chat_template import load_checked_prompt_format, template_notes
from pipelines.checks.dataset import DatasetChecks
from pipelines.checks.files import check_data_files, source_notes
from pipelines.checks.findings import raise_on_errors
from pipelines.commands.arguments import config_argument, overrides_argument
from pipelines.commands.token_text import print_row, print_rows
from pipelines.config.job import Job, load_job
from pipelines.config.lr_schedules import ScheduleSettings, StepCounts, lr_factor, peak_learning_rate
from pipelines.console.plain_text import encodes_unicode
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.data.examples import HeldOutRows, load_examples
from pipelines.data.few_shot import few_shot_prompts
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.row_reasoning import RowReasoning
from pipelines.data.sources import SPLITS
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.data.too_long import TooLongRows
from pipelines.modeling.base_models import context_length, ensure_base_model, locate_model_errors
from pipelines.modeling.token_sequences import num_supervised_tokens
from pipelines.report.results import describe_given
from pipelines.report.tables import Column, cell, print_table
from pipelines.scoring.sandbox import prepare_sandbox

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "01234567"
SPARKLINE_WIDTH = 40
READ_ROWS = 1000
"""Rows of each split that are tokenized and checked without --lengths; as many as decide whether a task trains
reasoning (`row_reasoning.PEEKED_ROWS`)."""


@click.command()
@config_argument
@overrides_argument
@click.option("--rows", default=2, show_default=True, help="Rows to show per task.")
@click.option("--lengths", is_flag=True, help="Tokenize and check all rows, not only the first of each split.")
@click.option("--full", is_flag=True, help="Show the whole text of long turns.")
def preview(config: Path, overrides: tuple[str, ...], rows: int, lengths: bool, full: bool) -> None:
    """Show tokenized rows, sequence lengths and learning rates.

    Every turn of a row is shown as the chat template writes it, with its number of tokens; lines with > are
    supervised. The first 1,000 rows of each split are tokenized and checked as in a run; the others are counted, unless
    --lengths is given.

    \b
    Example:
      alfine preview ludwig_configs/quickstart.yaml --rows 1
    """
    job = load_job(config, overrides)
    check_data_files(job)
    quiet_libraries()
    reporter = ConsoleReporter()
    with reporter.status(f"Base model {job.base_model}"), locate_model_errors(job, "base_model"):
        folder = ensure_base_model(job.base_model)
    prepare_sandbox({task.metric for task in job.pipeline.tasks.values()}, reporter.status)
    counts = HeldOutRows()
    with reporter.status("Reading rows"):
        prompt_format = load_checked_prompt_format(job, folder)
        checks = DatasetChecks(job, prompt_format, context_length(folder))
        reasoning = RowReasoning(job, prompt_format.reasoning_markers, prompt_format)
        too_long = TooLongRows(job, prompt_format, checks.max_length)
        examples = load_examples(job.pipeline, counts, None if lengths else READ_ROWS)
        tokenized = too_long.apply(tokenize_examples(reasoning.apply(examples), prompt_format))
        preview_rows = PreviewRows.read(checks.observe_all(tokenized), rows)
    console = Console(highlight=False)
    print_rows(list(chain(*preview_rows.shown.values())), prompt_format, console, rows, shorten=not full)
    print_few_shot_prompts(preview_rows, job, prompt_format, console, shorten=not full)
    print_lengths(preview_rows, counts, console)
    dropped = sum(count for (_, split), count in too_long.dropped.items() if split == "train")
    print_schedule(job.trainer, counts.total("train") - dropped, console)
    for note in [*source_notes(job), *template_notes(job, prompt_format), *reasoning.notes]:
        reporter.note(note)
    for note in counts.notes(job.pipeline):
        reporter.note(note)
    findings = checks.findings(is_complete=not counts.skipped)
    for warning in [*reasoning.warnings, *too_long.warnings]:
        reporter.warn(warning)
    for finding in findings:
        if finding.severity == "warning":
            reporter.warn(str(finding.problem))
    raise_on_errors(findings)


@dataclass
class PreviewRows:
    """What is kept of the rows: the first training rows of each task, and the lengths of all in tokens.

    Attributes:
        shown: the training rows that are shown, per task.
        candidates: the training rows that may become examples in a prompt, per task.
        test_rows: the first test rows per task, at most READ_ROWS.
        lengths, supervised: the number of tokens of each row, and the supervised ones of all, per (task, split).
    """

    shown: dict[str, list[TokenizedExample]] = field(default_factory=dict)
    candidates: dict[str, list[TokenizedExample]] = field(default_factory=dict)
    test_rows: dict[str, list[TokenizedExample]] = field(default_factory=dict)
    lengths: dict[tuple[str, str], array[int]] = field(default_factory=dict)
    supervised: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def read(cls, rows: Iterable[TokenizedExample], rows_per_task: int) -> PreviewRows:
        """Reads all rows and keeps `rows_per_task` training rows of every task."""
        kept = cls()
        for row in rows:
            group = (row.example.task, row.example.split)
            kept.lengths.setdefault(group, array("q")).append(len(row.input_ids))
            kept.supervised[group] += num_supervised_tokens(row.supervised_spans)
            shown = kept.shown.setdefault(row.example.task, [])
            if row.example.split == "train" and len(shown) < rows_per_task:
                shown.append(row)
            if row.example.rank is not None:
                kept.candidates.setdefault(row.example.task, []).append(row)
            test_rows = kept.test_rows.setdefault(row.example.task, [])
            if row.example.split == "test" and len(test_rows) < READ_ROWS:
                test_rows.append(row)
        return kept


def print_few_shot_prompts(
    rows: PreviewRows, job: Job, prompt_format: PromptFormat, console: Console, shorten: bool
) -> None:
    """Prints the prompt of the first test row of every task with its examples, as the base is given it."""
    for name, task in job.pipeline.tasks.items():
        settings = job.pipeline.few_shot(task)
        if not settings or not rows.test_rows.get(name):
            continue
        test_rows = [_with_limit(row, job) for row in rows.test_rows[name]]
        candidates = sorted(rows.candidates.get(name, []), key=lambda row: row.example.rank or 0)
        prompts = few_shot_prompts(
            name, settings, test_rows, candidates, prompt_format, limit=1, cluster_by=task.cluster_by
        )
        if prompts.rows:
            row = prompts.shown(0, prompt_format)
            given = describe_given(prompts.counts[0], prompts.summary.instruction)
            console.rule(Text(f"{name}  {row.example.source_location}, base with {given} in the prompt"), align="left")
            print_row(row, prompt_format, console, shorten)
        if settings.choices:
            numbers = ", ".join(map(str, settings.choices))
            console.print(Text(f"{name}: the run takes the best number of examples of {numbers}; shown with the most"))
        for note in prompts.summary.notes:
            console.print(Text(f"{name}: {note}"))


def _with_limit(row: TokenizedExample, job: Job) -> TokenizedExample:
    """The row with the limit of its completion, which the examples must leave room for."""
    limit = job.completion_limit(row.example.task, with_reasoning=row.example.reasoning is not None)
    return replace(row, example=replace(row.example, max_new_tokens=limit))


def print_lengths(rows: PreviewRows, counts: HeldOutRows, console: Console) -> None:
    """Prints a table of sequence lengths in tokens, per task and split, and how many rows it is of."""
    columns = [Column("task", words=True), Column("split", left=True)]
    columns += [Column(name) for name in ("rows", "shortest", "median", "longest", "supervised tokens")]
    table: list[list[str | Text]] = []
    for (task, split), unsorted_lengths in rows.lengths.items():
        lengths = sorted(unsorted_lengths)
        supervised = rows.supervised[task, split]
        numbers = (len(lengths), lengths[0], lengths[len(lengths) // 2], lengths[-1], supervised)
        table.append([cell(task), split, *(f"{number:,}" for number in numbers)])
    console.print(Text("Sequence lengths in tokens", style="italic"))
    print_table(columns, table, console)
    if counts.skipped:
        totals = ", ".join(f"{counts.total(split):,} {split}" for split in SPLITS if counts.total(split))
        console.print(
            f"The table is of the first {READ_ROWS:,} rows of each split and the candidates for examples in a prompt; "
            f"in all there are {totals} rows. --lengths tokenizes and checks them all."
        )


def print_schedule(trainer: Mapping[str, Any], num_rows: int, console: Console) -> None:
    """Prints the steps, the evaluations and the learning rate of the section `trainer` on `num_rows` training rows."""
    settings = ScheduleSettings.from_config(trainer.get("learning_rate_scheduler") or {})
    steps = StepCounts.from_trainer(trainer, num_rows)
    peak = peak_learning_rate(trainer)
    rates = [peak * lr_factor(settings, steps, peak, step) for step in range(steps.total)]
    highest = max(rates)
    console.print(f"{steps.total:,} steps, {steps.per_epoch:,} per epoch, evaluated every {steps.per_evaluation:,}")
    curve = sparkline(rates, BARS if encodes_unicode(console.file) else ASCII_BARS)
    console.print(f"learning rate  {curve}  {settings.decay or 'constant'}")
    console.print(
        f"first {rates[0]:.3g}, peak {highest:.3g} at step {rates.index(highest) + 1:,}, last {rates[-1]:.3g}"
    )
    if settings.reduce_on_plateau:
        rate, times = settings.reduce_on_plateau_rate, settings.reduce_on_plateau
        console.print(f"multiplied by {rate:g} on each plateau, at most {times} times")


def sparkline(values: Sequence[float], bars: str = BARS, width: int = SPARKLINE_WIDTH) -> str:
    """A bar chart of `values` in one line of at most `width` characters.

    More values than that are sampled at even distances, with the first and the last. The scale begins at 0.
    """
    num_bars, largest = min(len(values), width), max(values) or 1.0
    sampled = [values[round(index * (len(values) - 1) / max(num_bars - 1, 1))] for index in range(num_bars)]
    return "".join(bars[min(int(value / largest * len(bars)), len(bars) - 1)] for value in sampled)
