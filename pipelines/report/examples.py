"""`alfine show`: the examples of a run in the terminal, both answers side by side, the worst regressions first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pipelines.report.formatting import heading, printable, score

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pipelines.report.results import Analysis, Example

MOST_LINES = 30
"""Of one text; the whole text stands in report.json."""
MOST_CHARACTERS = 3000

Wanted = Literal["all", "better", "worse", "same"]
STYLES = {"better": "green", "worse": "red", "same": "dim", "unscored": "yellow"}


def chosen(analysis: Analysis, task: str | None, wanted: Wanted) -> list[Example]:
    """The examples of one task, or all, that changed as wanted; the worst first."""
    return [
        example
        for example in analysis.worst_first
        if (task is None or example.task == task) and wanted in ("all", example.change)
    ]


def show(analysis: Analysis, examples: Sequence[Example], console: Console) -> None:
    """Through the pager where the terminal is one, all at once into a pipe."""
    if console.is_terminal and console.file.isatty():  # rich takes a pipe for a terminal where FORCE_COLOR is set
        os.environ.setdefault("LESS", "-R")  # colours, which less would show as codes
        with console.pager(styles=True):
            for part in _parts(analysis, examples):
                console.print(part)
    else:
        for part in _parts(analysis, examples):
            console.print(part)


def _parts(analysis: Analysis, examples: Sequence[Example]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    for example in examples:
        task = analysis.tasks[example.task]
        title = f"{example.task}, row {example.row}: {example.change}"
        yield Rule(Text(title, style=STYLES[example.change]), align="left", style="dim")
        yield Text(_shown(example.prompt))
        yield Padding(Text(_shown(example.reference), style="dim"), (0, 0, 0, 2))
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        scores = (example.base_score, example.tuned_score)
        for side, value in zip(analysis.sides, scores, strict=True):
            name = f"{heading(side)} ({score(value, task.unit, task.binary)})"
            table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
        table.add_row(Text(_shown(example.base)), Text(_shown(example.tuned)))
        if example.base_detail or example.tuned_detail:
            details = (example.base_detail, example.tuned_detail)
            table.add_row(*(Text(_shown(detail) if detail else "", style="dim") for detail in details))
        yield table
        yield Text()


def _shown(text: str) -> str:
    """Model text as it stands, but for what would move the terminal's cursor; long ones cut."""
    lines = printable(text[:MOST_CHARACTERS]).replace("\t", "    ").split("\n")
    cut = len(lines) > MOST_LINES or len(text) > MOST_CHARACTERS
    return "\n".join(lines[:MOST_LINES]) + (" …" if cut else "") or "(nothing)"
