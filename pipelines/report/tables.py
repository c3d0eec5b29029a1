"""Tables for terminals of any width.

Numbers and words are never broken. A row that does not fit on a line becomes a block of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.report.formatting import one_line

GAP = 2
"""Cells between two columns."""
MAX_NAME_CELLS = 56
"""Cells of a name; a longer one is truncated with …"""
MIN_TEXT_CELLS = 8
"""Minimum cells of a column of words."""


@dataclass(frozen=True)
class Column:
    """A column of `words`, which may continue on the next line between two of them, or of numbers, which stay whole.

    If a table is too wide for one line per row, `optional` columns are left out, the last one first.
    """

    heading: str
    words: bool = False
    optional: bool = False
    left: bool = False
    """Whether numbers are aligned left; words always are."""

    @property
    def alignment(self) -> Literal["left", "right"]:
        """The alignment of the cells."""
        return "left" if self.words or self.left else "right"


def cell(text: str, style: str = "") -> Text:
    """A name or a title as a cell: one line without control characters or markup."""
    content = Text(one_line(text, 2 * MAX_NAME_CELLS), style=style)
    content.truncate(MAX_NAME_CELLS, overflow="ellipsis")  # by cells: a Chinese character takes two
    return content


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """Prints one line per row if the console is wide enough, else a block per row, headed by the first column."""
    texts = [[content if isinstance(content, Text) else Text(content) for content in row] for row in rows]
    shown = list(range(len(columns)))
    while True:
        chosen = [columns[index] for index in shown]
        cells = [[row[index] for index in shown] for row in texts]
        optional = [index for index in shown if columns[index].optional]
        widths = _column_widths(chosen, cells, console.width, wrap=not optional)
        if widths is not None:
            console.print(_table(chosen, cells, widths))
            return
        if not optional:
            break
        shown.remove(optional[-1])
    for row in texts:
        _print_block(columns, row, console)


def _column_widths(
    columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, wrap: bool
) -> list[int] | None:
    """The cells of each column, or None if lines of `width` cells are too short. `wrap`: words may continue below."""
    natural, minimum = [], []
    for index, column in enumerate(columns):
        contents = [row[index].plain for row in rows]
        natural.append(max(map(cell_len, [column.heading, *contents])))
        words = [cell_len(word) for text in (column.heading, *contents) for word in text.split()]
        numbers = [] if column.words else [cell_len(text) for text in contents]
        minimum.append(min(natural[-1], max([MIN_TEXT_CELLS if column.words else 1, *words, *numbers])))
    available = width - GAP * (len(columns) - 1)
    if sum(minimum if wrap else natural) > available:
        return None
    widths = list(minimum)
    for index, wanted in enumerate(natural):
        widths[index] += min(wanted - minimum[index], available - sum(widths))
    return widths


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(Text(column.heading), justify=column.alignment, width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _print_block(columns: Sequence[Column], row: Sequence[Text], console: Console) -> None:
    """Prints the first cell, and below it each other non-empty cell with its heading."""
    indent = 2 + max(cell_len(column.heading) for column in columns[1:]) + GAP
    if row[0].plain:
        console.print(row[0])
    for column, text in zip(columns[1:], row[1:], strict=True):
        if text.plain:
            heading = Text(f"  {set_cell_size(column.heading, indent - 2)}", style="dim")
            # On a line of its own if the value does not fit beside its heading.
            separator = "\n    " if indent + cell_len(text.plain) > console.width else ""
            console.print(Text.assemble(heading, separator, text))
