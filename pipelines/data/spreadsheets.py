"""Excel workbooks (.xlsx): the rows of the first sheet that is visible."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.text_files import NumberedRows
from pipelines.errors import DataError, Problem
from pipelines.registry import lazy_import
from pipelines.storage.strict_json import NonTextValue

if TYPE_CHECKING:
    import openpyxl
else:  # most jobs have no workbook
    openpyxl = lazy_import("openpyxl")

MAX_LISTED = 5
"""Sheets that a note names."""
MAX_UNPACKED_BYTES = 4 << 30
"""Bytes of the XML inside a workbook. A small file can claim to hold more than any disk."""


def read_xlsx(path: Path) -> NumberedRows:
    """Yields the rows of the first visible sheet, each after its number in the sheet.

    The first row that is not empty is the header; empty rows are skipped. Whole numbers have no decimal point, dates
    and times are ISO 8601 texts, empty cells are None, formulas have the value that Excel has stored. Raises DataError
    for a file that is not a workbook and for a header that is not valid.
    """
    with _open_workbook(path) as workbook:
        sheet = _first_visible(workbook, path)
        header: list[str] = []
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            values = [_cell_value(cell) for cell in cells]
            if all(value is None for value in values):
                continue
            if not header:
                header = _header(values, path, number)
                continue
            if extra := [value for value in values[len(header) :] if value is not None]:
                message = f"has {extra[0]!r:.40} to the right of the last column of the header; give it a name"
                raise DataError(Problem(message, str(path), number))
            values += [None] * (len(header) - len(values))
            yield number, dict(zip(header, values, strict=False))


def xlsx_notes(path: Path) -> list[str]:
    """The sheet that is read, if there are several."""
    with _open_workbook(path) as workbook:
        if len(workbook.worksheets) < 2:
            return []
        name = _first_visible(workbook, path).title
        others = [repr(sheet.title) for sheet in workbook.worksheets if sheet.title != name]
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        return [
            f"read from its sheet {name!r}; left out: {', '.join(others[:MAX_LISTED])}{more}; the first one is read"
        ]


@contextmanager
def _open_workbook(path: Path) -> Iterator[Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise DataError(Problem("is too large a workbook; save it as CSV", str(path)))
    except (zipfile.BadZipFile, NotImplementedError):  # the latter: a version of the format that no program writes
        raise DataError(
            Problem("not a valid .xlsx workbook (truncated, or protected by a password?)", str(path))
        ) from None
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except OSError:
        raise
    except Exception as error:  # openpyxl raises what the XML leads to: KeyError, ValueError, ParseError, …
        raise _damaged(path, error) from None
    try:
        yield workbook
    except (DataError, OSError, GeneratorExit):
        raise
    except Exception as error:
        raise _damaged(path, error) from None
    finally:
        workbook.close()


def _damaged(path: Path, error: Exception) -> DataError:
    cause = " ".join(str(error).split())[:100] or type(error).__name__
    return DataError(Problem(f"not a valid .xlsx workbook ({cause}); save it again, or as CSV", str(path)))


def _first_visible(workbook: Any, path: Path) -> Any:
    for sheet in workbook.worksheets:
        if sheet.sheet_state == "visible":
            sheet.reset_dimensions()  # some programs write a wrong size, and rows beyond it would be lost
            return sheet
    raise DataError(Problem("has no visible sheet", str(path)))


def _header(values: list[Any], path: Path, row: int) -> list[str]:
    while values and values[-1] is None:
        values.pop()
    names = ["" if value is None else str(value).strip() for value in values]
    if "" in names:
        raise DataError(Problem(f"column {names.index('') + 1} has no name in the header", str(path), row))
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise DataError(Problem(f"two columns have the name {duplicate!r}", str(path), row))
    return names


def _cell_value(cell: Any) -> Any:
    value = cell.value
    if value is None or isinstance(value, bool | int):
        return value
    if cell.data_type == "e":
        return NonTextValue(str(value), f"has the Excel error {value}; correct the cell, or drop the row")
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    return str(value)
