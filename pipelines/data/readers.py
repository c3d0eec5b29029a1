"""The rows of a .jsonl, .csv or .parquet file, one at a time: a file may be larger than memory.

Every value of a row is one of JSON's, or a NotText, so that whatever is read can be written (strict_json.dump).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pipelines.data.parquet import parquet_rows
from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import NotStrict, parse

MOST_BYTES = 64 << 20
"""Of a line."""
MOST_PROBLEMS = 10
"""RowErrors of different kinds that are named of one file."""
_MARK = "\ufeff"
"""The byte order mark that some editors put before a file's first character."""
_SIGNS = {
    b"PK\x03\x04": "a zip archive (or .xlsx); unpack it, or save it as CSV",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PAR1": "a Parquet file; name it .parquet",
}
"""What a file begins with that is none of the forms of text."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows. Raises DataError with file and line."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows as they are read, each with the line on which it begins (of a Parquet file: its number from 1). White space
    around a column's name does not count. Raises DataError with file and line, where it comes to it."""
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]]
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": parquet_rows}
    if suffix not in readers:
        raise DataError(Problem(f"files end in .jsonl, .csv or .parquet, not {suffix or 'nothing'!r}", str(path)))
    empty = True
    try:
        _refuse_other_forms(path, suffix)
        for number, row in readers[suffix](path):
            empty = False
            yield number, _with_trimmed_names(row, path, number)
    except FileNotFoundError:
        raise DataError(Problem("there is no such file", str(path))) from None
    except IsADirectoryError:
        raise DataError(Problem("is a folder; name a file", str(path))) from None
    except PermissionError:
        raise DataError(Problem("may not be read (permission denied)", str(path))) from None
    if empty:
        raise DataError(Problem("has no rows", str(path)))


class RowErrors:
    """Rows that cannot be used, by what is wrong with them: a sentence for each kind, at its first row."""

    def __init__(self, about: str = "") -> None:
        self.about = about
        self.rows: dict[tuple[str, str], list[int]] = {}

    def add(self, file: str, row: int, message: str) -> None:
        self.rows.setdefault((file, message), []).append(row)

    def raise_if_any(self) -> None:
        """Raises DataError if there are any, for the first MOST_PROBLEMS kinds."""
        if not self.rows:
            return
        problems = [
            Problem(f"{self.about}{message}" + (f" ({len(rows):,} such rows)" if len(rows) > 1 else ""), file, rows[0])
            for (file, message), rows in self.rows.items()
        ]
        if more := problems[MOST_PROBLEMS:]:
            count = sum(len(rows) for rows in list(self.rows.values())[MOST_PROBLEMS:])
            others = Problem(f"{self.about}{count:,} more rows have other mistakes", more[0].file, more[0].line)
            problems[MOST_PROBLEMS:] = [others]
        raise DataError(problems)


def _with_trimmed_names(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    if all(name == name.strip() for name in row):
        return row
    trimmed = {name.strip(): value for name, value in row.items()}
    if len(trimmed) < len(row):
        names = [name.strip() for name in row]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            Problem(f"two columns have the name {twice!r} but for white space; rename one", str(path), number)
        )
    return trimmed


def _refuse_other_forms(path: Path, suffix: str) -> None:
    """Raises DataError for a file that its first bytes give away."""
    if suffix == ".parquet" or not path.is_file():
        return
    with path.open("rb") as file:
        begin = file.read(4)
    for sign, found in _SIGNS.items():
        if begin.startswith(sign):
            raise DataError(Problem(f"is {found}, whatever its name says", str(path)))


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, without byte order marks before the first."""
    with path.open("rb") as file:
        # Bounded: a file without line ends would be read into memory whole.
        for number, raw in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), start=1):
            if len(raw) > MOST_BYTES:
                message = (
                    f"is longer than {MOST_BYTES >> 20} MB; a row ends with its line, and none so long fits a model"
                )
                raise DataError(Problem(message, str(path), number))
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(Problem("is not UTF-8 here; save the file as UTF-8", str(path), number)) from None
            yield line.lstrip(_MARK) if number == 1 else line


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        line = line.lstrip(_MARK)  # files put together with cat have one where each began
        if not line.strip():
            continue
        try:
            row = parse(line)
        except json.JSONDecodeError as error:
            raise DataError(Problem(f"is not JSON: {_advice(error, number == 1)}", str(path), number)) from None
        except NotStrict as error:
            raise DataError(Problem(str(error), str(path), number)) from None
        if not isinstance(row, dict):
            raise DataError(Problem('is no object; write {"column": "value", ...} on each line', str(path), number))
        yield number, row


def _advice(error: json.JSONDecodeError, first: bool) -> str:
    """What to do about a line, for what the parser ran into."""
    line, rest = error.doc, error.doc[error.pos :].strip()
    if first and line.lstrip().startswith("["):
        return "each line holds one object, {...}, not a list over all lines (jq -c '.[]' FILE writes them so)"
    if "Extra data" in error.msg and rest.startswith(","):
        return "a comma stands behind the object; take it out"
    if "Extra data" in error.msg:
        return f"a second value begins in column {error.colno}; put it on a line of its own"
    if "'" in line[error.pos : error.pos + 1]:
        return "names and texts stand in double quotes, not in single ones"
    if "Unterminated" in error.msg or not rest:
        return "the line ends before its object does; is the file cut off?"
    if "control character" in error.msg:
        return f"the control character {ascii(line[error.pos])} stands in column {error.colno}; write its escape, such as \\t"
    return f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}; each line holds one object, {{...}}"


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not pandas: it fills short rows with NaN and turns "001" or "NA" into something else without a word.
    csv.field_size_limit(2**31 - 1)
    lines = _lines(path)
    first = next(lines, "")
    if "\r" in first.rstrip("\r\n") and not first.endswith("\n"):
        raise DataError(Problem("its lines end with CR only, as on old Macs; save it with LF or CRLF", str(path), 1))
    reader = csv.reader(chain([first], lines), strict=True, skipinitialspace=_spaced(first))
    try:
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        _check_header(header, path, reader.line_num)
        start = reader.line_num + 1
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                message = f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas"
                raise DataError(Problem(message, str(path), reader.line_num))
            if len(header) > 1 and [cell.strip(f"{_MARK} ") for cell in cells] == header:
                message = "repeats the header, as where two files were put together; take this line out"
                raise DataError(Problem(message, str(path), number))
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        cause = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(Problem(f"is not CSV ({cause})", str(path), reader.line_num)) from None


def _spaced(header: str) -> bool:
    """Whether the header has a space after its commas, as in `text, label`: it then belongs to the separator in every row."""
    try:
        return any(name.startswith(" ") for name in next(csv.reader([header]), [])[1:])
    except csv.Error:
        return False  # said where the header is read


def _check_header(header: list[str], path: Path, line: int) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1 and name}):
        raise DataError(Problem(f"two columns have the name {repeated[0]!r}", str(path), line))
    if "" in header:
        raise DataError(Problem(f"column {header.index('') + 1} has no name in the header", str(path), line))
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        message = f"its header is one column, {header[0]!r}; separate cells with commas, not with {other!r}"
        raise DataError(Problem(message, str(path), line))


def text_column(row: Mapping[str, Any], name: str) -> str | None:
    """The row's text in a column, None where there is none or it is something else or blank."""
    value = row.get(name)
    return value if isinstance(value, str) and value.strip() else None
