"""Rows as the model will see them: special tokens visible, what is trained in another colour, lengths per task; and the
learning rate from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from pipelines.config.lr_schedules import Settings, Steps, factor, learning_rate
from pipelines.console.plain_text import speaks_unicode
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.modeling.token_sequences import num_supervised_tokens, split_at_spans
from pipelines.report.formatting import printable
from pipelines.report.tables import Column, cell, print_table


def show_rows(rows: Sequence[TokenizedExample], prompts: PromptFormat, console: Console, per_task: int) -> None:
    """`per_task` training rows of every task, then a table of lengths in tokens."""
    console.print(Text.assemble("read by the model  ", ("trained: the answer and its end", "bold green")))
    for task in dict.fromkeys(row.example.task for row in rows):
        of_task = [row for row in rows if row.example.task == task and row.example.split == "train"]
        for row in of_task[:per_task]:
            console.rule(Text(f"{task}  {row.example.source_location}"), align="left")
            console.print(_coloured(row, prompts))
    _print_lengths(rows, console)


def _coloured(row: TokenizedExample, prompts: PromptFormat) -> Text:
    special = set(prompts.tokenizer.all_special_ids)
    decode = prompts.tokenizer.decode
    text = Text(overflow="fold")
    for ids, is_supervised in split_at_spans(row.input_ids, row.supervised_spans):
        style = "bold green" if is_supervised else ""
        plain: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in special:
                plain.append(token)
                continue
            # Whole runs are decoded together: a letter may be spread over several tokens.
            text.append(printable(str(decode(plain))), style=style)
            plain = []
            if token is not None:
                text.append(str(decode([token])), style="reverse " + (style or "dim"))
    return text


def _print_lengths(rows: Sequence[TokenizedExample], console: Console) -> None:
    columns = [Column("task", words=True), Column("split", left=True)]
    columns += [Column(name) for name in ("rows", "shortest", "median", "longest", "trained tokens")]
    table: list[list[str | Text]] = []
    for task, split in dict.fromkeys((row.example.task, row.example.split) for row in rows):
        group = [row for row in rows if (row.example.task, row.example.split) == (task, split)]
        lengths = sorted(len(row.input_ids) for row in group)
        trained = sum(num_supervised_tokens(row.supervised_spans) for row in group)
        figures = (len(group), lengths[0], lengths[len(lengths) // 2], lengths[-1], trained)
        table.append([cell(task), split, *(f"{figure:,}" for figure in figures)])
    console.print(Text("Lengths in tokens", style="italic"))
    print_table(columns, table, console)


BARS, DIGITS = "▁▂▃▄▅▆▇█", "01234567"
WIDTH = 40
"""Characters of the curve of the learning rate."""


def show_schedule(trainer: Mapping[str, Any], rows: int, console: Console) -> None:
    """Steps, evaluations and the learning rate of the section `trainer` on `rows` training rows, with a curve of it from the
    first step to the last."""
    settings, steps = Settings.of(trainer.get("learning_rate_scheduler") or {}), Steps.of(trainer, rows)
    peak = learning_rate(trainer)
    rates = [peak * factor(settings, steps, peak, step) for step in range(steps.total)]
    console.print(f"{steps.total:,} steps, {steps.per_epoch:,} an epoch, evaluated every {steps.per_evaluation:,}")
    curve = sparkline(rates, BARS if speaks_unicode(console.file) else DIGITS)
    console.print(f"learning rate  {curve}  {settings.decay or 'constant'}")
    console.print(
        f"first {rates[0]:.3g}, peak {max(rates):.3g} at step {rates.index(max(rates)) + 1:,}, last {rates[-1]:.3g}"
    )
    if settings.reduce_on_plateau:
        rate, times = settings.reduce_on_plateau_rate, settings.reduce_on_plateau
        console.print(f"times {rate:g} on each plateau, at most {times} times")


def sparkline(values: Sequence[float], bars: str = BARS, width: int = WIDTH) -> str:
    """One bar for each value, or for evenly spaced ones where there are more than `width`, with the first and the last; an
    empty bar is 0, a full one the largest value."""
    count, top = min(len(values), width), max(values) or 1.0
    chosen = [values[round(n * (len(values) - 1) / max(count - 1, 1))] for n in range(count)]
    return "".join(bars[min(int(value / top * len(bars)), len(bars) - 1)] for value in chosen)
