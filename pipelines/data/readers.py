"""Readers: stream the rows of a .jsonl, .csv or .parquet file, which may be larger than memory.

Every value of a row is a JSON value or a `NonTextValue`, so that all rows can be written as JSON (`strict_json.dump`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pipelines.data.parquet import read_parquet
from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import StrictJsonError, parse

MAX_LINE_BYTES = 64 << 20
MAX_PROBLEMS = 10
"""Kinds of problems that are reported for one file."""
_BYTE_ORDER_MARK = "\ufeff"
_MAGIC_BYTES = {
    b"PK\x03\x04": "a zip archive (or .xlsx); unpack it, or save it as CSV",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PAR1": "a Parquet file; name it .parquet",
}
"""First bytes of files that are not text, with what to do about them."""

NumberedRows = Iterator[tuple[int, dict[str, Any]]]
"""Rows by column, each after the line on which it begins (of a Parquet file: its index from 1)."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file by column. Raises DataError with file and line."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> NumberedRows:
    """Yields the rows as they are read, each after the line on which it begins (of a Parquet file: its index from 1).

    White space around column names is stripped. Raises DataError with file and line at the first row that is not valid.
    """
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[Path], NumberedRows]]
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": read_parquet}
    if suffix not in readers:
        raise DataError(Problem(f"files end in .jsonl, .csv or .parquet, not {suffix or 'nothing'!r}", str(path)))
    is_empty = True
    try:
        _check_magic_bytes(path, suffix)
        for line, row in readers[suffix](path):
            is_empty = False
            yield line, _strip_column_names(row, path, line)
    except FileNotFoundError:
        raise DataError(Problem("no such file", str(path))) from None
    except IsADirectoryError:
        raise DataError(Problem("is a folder; name a file", str(path))) from None
    except PermissionError:
        raise DataError(Problem("permission denied", str(path))) from None
    if is_empty:
        raise DataError(Problem("has no rows", str(path)))


class RowErrors:
    """Collects the rows of a file that cannot be used, grouped by message: one problem per kind, at its first row."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.row_numbers: dict[tuple[str, str], list[int]] = {}

    def add(self, file: str, row_number: int, message: str) -> None:
        self.row_numbers.setdefault((file, message), []).append(row_number)

    def raise_if_any(self) -> None:
        """Raises DataError for the first MAX_PROBLEMS kinds, with a count of the other rows."""
        if not self.row_numbers:
            return
        problems = [
            Problem(
                f"{self.prefix}{message}" + (f" ({len(numbers):,} such rows)" if len(numbers) > 1 else ""),
                file,
                numbers[0],
            )
            for (file, message), numbers in self.row_numbers.items()
        ]
        if hidden := problems[MAX_PROBLEMS:]:
            count = sum(len(numbers) for numbers in list(self.row_numbers.values())[MAX_PROBLEMS:])
            message = f"{self.prefix}{count:,} more rows have other problems"
            problems[MAX_PROBLEMS:] = [Problem(message, hidden[0].file, hidden[0].line)]
        raise DataError(problems)


def text_column(row: Mapping[str, Any], name: str) -> str | None:
    """The row's text in a column. None if the column is missing, blank or not a text."""
    value = row.get(name)
    return value if isinstance(value, str) and value.strip() else None


def _strip_column_names(row: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    if all(name == name.strip() for name in row):
        return row
    stripped = {name.strip(): value for name, value in row.items()}
    if len(stripped) < len(row):
        names = [name.strip() for name in row]
        duplicate = next(name for name in names if names.count(name) > 1)
        message = f"two columns have the name {duplicate!r} once white space is stripped; rename one"
        raise DataError(Problem(message, str(path), line))
    return stripped


def _check_magic_bytes(path: Path, suffix: str) -> None:
    """Raises DataError for a text file whose first bytes are those of another format."""
    if suffix == ".parquet" or not path.is_file():
        return
    with path.open("rb") as file:
        first_bytes = file.read(4)
    for magic_bytes, description in _MAGIC_BYTES.items():
        if first_bytes.startswith(magic_bytes):
            raise DataError(Problem(f"despite its name, this is {description}", str(path)))


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines with their line ends. Byte order marks at the start of the file are removed."""
    with path.open("rb") as file:
        # The length is limited: a file without line ends would be read into memory completely.
        for line_number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(raw) > MAX_LINE_BYTES:
                message = f"exceeds {MAX_LINE_BYTES >> 20} MB; write one row per line"
                raise DataError(Problem(message, str(path), line_number))
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(Problem("is not UTF-8; save the file as UTF-8", str(path), line_number)) from None
            yield line.lstrip(_BYTE_ORDER_MARK) if line_number == 1 else line


def _read_jsonl(path: Path) -> NumberedRows:
    for line_number, line in enumerate(_lines(path), start=1):
        line = line.lstrip(_BYTE_ORDER_MARK)  # concatenated files have one at the start of each
        if not line.strip():
            continue
        try:
            row = parse(line)
        except json.JSONDecodeError as error:
            raise DataError(
                Problem(f"is not JSON: {_json_hint(error, line_number == 1)}", str(path), line_number)
            ) from None
        except StrictJsonError as error:
            raise DataError(Problem(str(error), str(path), line_number)) from None
        if not isinstance(row, dict):
            message = 'expected a JSON object per line, as in {"column": "value", ...}'
            raise DataError(Problem(message, str(path), line_number))
        yield line_number, row


def _json_hint(error: json.JSONDecodeError, is_first_line: bool) -> str:
    """The advice for a line that is not JSON."""
    line, rest = error.doc, error.doc[error.pos :].strip()
    if is_first_line and line.lstrip().startswith("["):
        return "each line holds one object, {...}, not a list over all lines (jq -c '.[]' FILE writes them so)"
    if "Extra data" in error.msg and rest.startswith(","):
        return "there is a comma after the object; remove it"
    if "Extra data" in error.msg:
        return f"a second value begins in column {error.colno}; put it on its own line"
    if "'" in line[error.pos : error.pos + 1]:
        return "use double quotes around names and texts, not single quotes"
    if "Unterminated" in error.msg or not rest:
        return "the line ends before its object does; is the file truncated?"
    if "control character" in error.msg:
        character = ascii(line[error.pos])
        return f"unescaped control character {character} in column {error.colno}; write its escape, such as \\t"
    return f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}; each line holds one object, {{...}}"


def _read_csv(path: Path) -> NumberedRows:
    # Not pandas: it fills short rows with NaN and changes values such as "001" and "NA" silently.
    csv.field_size_limit(2**31 - 1)
    lines = _lines(path)
    first_line = next(lines, "")
    if "\r" in first_line.rstrip("\r\n") and not first_line.endswith("\n"):
        raise DataError(Problem("its lines end with CR only, as on old Macs; save it with LF or CRLF", str(path), 1))
    reader = csv.reader(chain([first_line], lines), strict=True, skipinitialspace=_has_space_after_commas(first_line))
    try:
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        _check_header(header, path, reader.line_num)
        next_start = reader.line_num + 1
        for cells in reader:
            start, next_start = next_start, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                message = f"has {len(cells)} cells, the header has {len(header)}; quote cells that contain commas"
                raise DataError(Problem(message, str(path), reader.line_num))
            if len(header) > 1 and [cell.strip(f"{_BYTE_ORDER_MARK} ") for cell in cells] == header:
                message = "repeats the header, as in concatenated files; remove this line"
                raise DataError(Problem(message, str(path), start))
            yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        cause = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(Problem(f"is not CSV ({cause})", str(path), reader.line_num)) from None


def _has_space_after_commas(header: str) -> bool:
    """Whether the header has a space after its commas, as in `text, label`. It is then part of the separator."""
    try:
        return any(name.startswith(" ") for name in next(csv.reader([header]), [])[1:])
    except csv.Error:
        return False  # _read_csv reports it


def _check_header(header: list[str], path: Path, line: int) -> None:
    """Raises DataError for column names that are empty or not unique, and for another separator than a comma."""
    if duplicates := sorted({name for name in header if header.count(name) > 1 and name}):
        raise DataError(Problem(f"two columns have the name {duplicates[0]!r}", str(path), line))
    if "" in header:
        raise DataError(Problem(f"column {header.index('') + 1} has no name in the header", str(path), line))
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        message = f"its header is one column, {header[0]!r}; separate cells with commas, not with {separator!r}"
        raise DataError(Problem(message, str(path), line))
