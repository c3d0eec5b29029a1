"""`alfine preview`: tokenized rows, sequence lengths and the learning rate schedule, as training will see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pipelines.commands.token_text import print_rows
from pipelines.config.job import load_job
from pipelines.config.lr_schedules import ScheduleSettings, StepCounts, lr_factor, peak_learning_rate
from pipelines.console.plain_text import encodes_unicode
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.data.examples import load_examples
from pipelines.data.row_reasoning import RowReasoning
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.data.too_long import TooLongRows
from pipelines.modeling.base_models import context_length, ensure_base_model, locate_model_errors
from pipelines.modeling.token_sequences import num_supervised_tokens
from pipelines.report.tables import Column, cell, print_table
from pipelines.scoring.sandbox import prepare_sandbox

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "01234567"
SPARKLINE_WIDTH = 40


@click.command()
@config_argument
@overrides_argument
@click.option("--rows", default=2, show_default=True, help="Rows to show per task.")
@click.option("--full", is_flag=True, help="Show the whole text of long turns.")
def preview(config: Path, overrides: tuple[str, ...], rows: int, full: bool) -> None:
    """Show tokenized rows, sequence lengths and learning rates.

    Every turn of a row is shown as the chat template writes it, with its number of tokens; lines with > are
    supervised. The data are checked as in a run.

    \b
    Example:
      alfine preview ludwig_configs/quickstart.yaml --rows 1
    """
    job = load_job(config, overrides)
    check_data_files(job)
    examples = list(load_examples(job.pipeline))
    quiet_libraries()
    reporter = ConsoleReporter()
    with reporter.status(f"Base model {job.base_model}"), locate_model_errors(job, "base_model"):
        folder = ensure_base_model(job.base_model)
    prepare_sandbox({task.metric for task in job.pipeline.tasks.values()}, reporter.status)
    with reporter.status("Preparing rows"):
        prompt_format = load_checked_prompt_format(job, folder)
        checks = DatasetChecks(job, prompt_format, context_length(folder))
        reasoning = RowReasoning(job, prompt_format.reasoning_markers, prompt_format)
        too_long = TooLongRows(job, prompt_format, checks.max_length)
        rows_that_fit = too_long.apply(tokenize_examples(reasoning.apply(examples), prompt_format))
        tokenized = list(checks.observe_all(rows_that_fit))
    console = Console(highlight=False)
    print_rows(tokenized, prompt_format, console, rows, shorten=not full)
    print_lengths(tokenized, console)
    num_train_rows = sum(row.example.split == "train" for row in tokenized)
    print_schedule(job.trainer, num_train_rows, console)
    for note in [*source_notes(job), *template_notes(job, prompt_format)]:
        reporter.note(note)
    findings = checks.findings()
    for note in reasoning.notes:
        reporter.note(note)
    for warning in [*reasoning.warnings, *too_long.warnings]:
        reporter.warn(warning)
    for finding in findings:
        if finding.severity == "warning":
            reporter.warn(str(finding.problem))
    raise_on_errors(findings)


def print_lengths(rows: Sequence[TokenizedExample], console: Console) -> None:
    """Prints a table of sequence lengths in tokens, per task and split."""
    columns = [Column("task", words=True), Column("split", left=True)]
    columns += [Column(name) for name in ("rows", "shortest", "median", "longest", "supervised tokens")]
    table: list[list[str | Text]] = []
    for task, split in dict.fromkeys((row.example.task, row.example.split) for row in rows):
        group = [row for row in rows if (row.example.task, row.example.split) == (task, split)]
        lengths = sorted(len(row.input_ids) for row in group)
        supervised = sum(num_supervised_tokens(row.supervised_spans) for row in group)
        numbers = (len(group), lengths[0], lengths[len(lengths) // 2], lengths[-1], supervised)
        table.append([cell(task), split, *(f"{number:,}" for number in numbers)])
    console.print(Text("Sequence lengths in tokens", style="italic"))
    print_table(columns, table, console)


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
