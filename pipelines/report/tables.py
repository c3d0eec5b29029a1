"""Tables in a terminal of any width: no number is cut, no word broken. What does not fit becomes a block per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.report.formatting import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

GAP = 2
"""Cells between two columns."""
LONGEST = 56
"""Cells of a name; what is longer is cut with …"""
NARROWEST = 8
"""Cells of a column of words, however short its words are."""


@dataclass(frozen=True)
class Column:
    """A column: of `words`, which may go on in the next line between two of them, or of numbers, which stay whole. Where there
    is no room for all on one line, the `optional` ones are left out first."""

    heading: str
    words: bool = False
    optional: bool = False
    left: bool = False
    """Where its cells stand; words stand there in any case."""


def cell(text: str, style: str = "") -> Text:
    """A name or a title as a cell: one line without control characters, no markup."""
    from rich.text import Text

    found = Text(one_line(text, 2 * LONGEST), style=style)
    found.truncate(LONGEST, overflow="ellipsis")  # by cells: a Chinese character takes two
    return found


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """One line a row where `console` is wide enough, else a block a row, with the first column as its heading."""
    from rich.text import Text

    texts = [[one if isinstance(one, Text) else Text(one) for one in row] for row in rows]
    needed = [n for n, column in enumerate(columns) if not column.optional]
    for wanted in (list(range(len(columns))), needed):
        chosen = [columns[n] for n in wanted]
        cells = [[row[n] for n in wanted] for row in texts]
        widths = _widths(chosen, cells, console.width, broken=wanted == needed)
        if widths is not None:
            console.print(_table(chosen, cells, widths))
            return
    for row in texts:
        _print_block(columns, row, console)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, broken: bool) -> list[int] | None:
    """The cells of each column; None where no line of `width` cells holds them. `broken`: words may go on in the next line."""
    from rich.cells import cell_len

    natural, least = [], []
    for number, column in enumerate(columns):
        cells = [row[number].plain for row in rows]
        natural.append(max(map(cell_len, [column.heading, *cells])))
        words = [cell_len(word) for text in (column.heading, *cells) for word in text.split()]
        whole = [] if column.words else [cell_len(text) for text in cells]
        least.append(min(natural[-1], max([NARROWEST if column.words else 1, *words, *whole])))
    room = width - GAP * (len(columns) - 1)
    if sum(least if broken else natural) > room:
        return None
    found = list(least)
    for number, most in enumerate(natural):
        found[number] += min(most - least[number], room - sum(found))
    return found


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        side = "left" if column.words or column.left else "right"
        table.add_column(Text(column.heading), justify=side, width=width, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def _print_block(columns: Sequence[Column], row: Sequence[Text], console: Console) -> None:
    """The first cell, and below it each other that holds something, with its heading."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    indent = 2 + max(cell_len(column.heading) for column in columns[1:]) + GAP
    if row[0].plain:
        console.print(row[0])
    for column, text in zip(columns[1:], row[1:], strict=True):
        if text.plain:
            heading = Text(f"  {set_cell_size(column.heading, indent - 2)}", style="dim")
            # Below its heading where even that line is too short for it.
            below = indent + cell_len(text.plain) > console.width
            console.print(Text.assemble(heading, "\n    " if below else "", text))
