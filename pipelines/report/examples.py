"""The examples of a run in the terminal: both completions side by side, the largest regressions first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipelines.report.formatting import NOTHING, heading, no_answer, printable, score
from pipelines.report.results import Analysis, ExampleComparison

MAX_LINES = 30
"""Lines of one text. The whole text is in report.json."""
MAX_CHARACTERS = 3000
"""Characters of one text."""

MAX_THOUGHT_LINES, MAX_THOUGHT_CHARACTERS = 5, 400
"""Lines and characters of the reasoning before an answer."""

ChangeFilter = Literal["all", "better", "worse", "same"]
STYLES = {"better": "green", "worse": "red", "same": "dim", "unscored": "yellow"}


def select_examples(analysis: Analysis, task: str | None, change: ChangeFilter) -> list[ExampleComparison]:
    """The examples of one task, or of all, with this change; the largest regressions first."""
    return [
        example
        for example in analysis.examples_by_regression
        if (task is None or example.task == task) and change in ("all", example.change)
    ]


def print_examples(analysis: Analysis, examples: Sequence[ExampleComparison], console: Console) -> None:
    """Prints through a pager if the output is a terminal, else at once."""
    if console.is_terminal and console.file.isatty():  # rich treats a pipe as a terminal if FORCE_COLOR is set
        os.environ.setdefault("LESS", "-R")  # less would show colors as escape codes
        with console.pager(styles=True):
            for part in _parts(analysis, examples):
                console.print(part)
    else:
        for part in _parts(analysis, examples):
            console.print(part)


def _parts(analysis: Analysis, examples: Sequence[ExampleComparison]) -> Iterator[RenderableType]:
    for example in examples:
        task = analysis.tasks[example.task]
        title = f"{example.task}, {example.row_title}: {example.change}"
        yield Rule(Text(title, style=STYLES[example.change]), align="left", style="dim")
        yield Text(_excerpt(example.prompt))
        yield Padding(Text(_excerpt(example.reference), style="dim"), (0, 0, 0, 2))
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        scores = (example.base_score, example.tuned_score)
        for model, value in zip(analysis.models, scores, strict=True):
            name = f"{heading(model)} ({score(value, task.unit, task.metric.binary)})"
            table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
        if example.base_reasoning or example.tuned_reasoning:
            thoughts = (example.base_reasoning, example.tuned_reasoning)
            table.add_row(*(Text(_thought(thought) if thought else "", style="dim italic") for thought in thoughts))
        table.add_row(
            Text(_answer(example.base, example.base_reasoning, example.base_reasoning_cut)),
            Text(_answer(example.tuned, example.tuned_reasoning, example.tuned_reasoning_cut)),
        )
        if example.base_detail or example.tuned_detail:
            details = (example.base_detail, example.tuned_detail)
            table.add_row(*(Text(_excerpt(detail) if detail else "", style="dim") for detail in details))
        yield table
        yield Text()


def _thought(text: str) -> str:
    """The beginning of a thought: the answer below it is what counts."""
    return f"reasoning: {_excerpt(text, MAX_THOUGHT_LINES, MAX_THOUGHT_CHARACTERS)}"


def _answer(text: str, reasoning: str | None, reasoning_cut: bool) -> str:
    return _excerpt(text) if text.strip() else no_answer(reasoning, reasoning_cut)


def _excerpt(text: str, max_lines: int = MAX_LINES, max_characters: int = MAX_CHARACTERS) -> str:
    """The text with control characters made visible; a long text is truncated."""
    lines = printable(text[:max_characters]).replace("\t", "    ").split("\n")
    truncated = len(lines) > max_lines or len(text) > max_characters
    return "\n".join(lines[:max_lines]) + (" …" if truncated else "") or NOTHING
