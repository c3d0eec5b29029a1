"""The rows of a .jsonl, .csv or .parquet file, one at a time: a file may be larger than memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import DataError, Problem

MOST_BYTES = 64 << 20
"""Of a line."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file decoded at once."""
_SIGNS = {
    b"PK\x03\x04": "a zip archive (or .xlsx); unpack it, or save it as CSV",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PAR1": "a Parquet file; name it .parquet",
}
"""What a file begins with that is none of the forms of text."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows. Raises DataError with file and line."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as they are read. Raises DataError with file and line, where it comes to it."""
    suffix = path.suffix.lower()
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if suffix not in readers:
        raise DataError(Problem(f"files end in .jsonl, .csv or .parquet, not {suffix or 'nothing'!r}", str(path)))
    empty = True
    try:
        _refuse_other_forms(path, suffix)
        for row in readers[suffix](path):
            empty = False
            yield row
    except FileNotFoundError:
        raise DataError(Problem("there is no such file", str(path))) from None
    except IsADirectoryError:
        raise DataError(Problem("is a folder; name a file", str(path))) from None
    except PermissionError:
        raise DataError(Problem("may not be read (permission denied)", str(path))) from None
    if empty:
        raise DataError(Problem("has no rows", str(path)))


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
    """Lines with their ends, without the mark that some editors put before the first."""
    with path.open("rb") as file:
        # Bounded: a file without line ends would be read into memory whole.
        for number, raw in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), start=1):
            if len(raw) > MOST_BYTES:
                message = f"is longer than {MOST_BYTES >> 20} MB; a row ends with its line, and none so long fits a model"
                raise DataError(Problem(message, str(path), number))
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(Problem("is not UTF-8 here; save the file as UTF-8", str(path), number)) from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(Problem(f"is not JSON: {_mend(error, number == 1)}", str(path), number)) from None
        except RecursionError:
            raise DataError(Problem("is not JSON that can be read: nested too deeply", str(path), number)) from None
        if not isinstance(row, dict):
            raise DataError(Problem('is no object; write {"column": "value", ...} on each line', str(path), number))
        yield row


def _mend(error: json.JSONDecodeError, first: bool) -> str:
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
    return f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}; each line holds one object, {{...}}"


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    # Not pandas: it fills short rows with NaN and turns "001" or "NA" into something else without a word.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise DataError(Problem(f"two columns have the name {repeated[0]!r}", str(path), 1))
        if "" in header:
            raise DataError(Problem(f"column {header.index('') + 1} has no name in the header", str(path), 1))
        if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
            message = f"its header is one column, {header[0]!r}; separate cells with commas, not with {other!r}"
            raise DataError(Problem(message, str(path), 1))
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    Problem(
                        f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas",
                        str(path),
                        reader.line_num,
                    )
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        cause = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(Problem(f"is not CSV ({cause})", str(path), reader.line_num)) from None


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        for batch in pq.ParquetFile(path).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError):
        raise DataError(Problem("is not a Parquet file, or not a whole one; write it again", str(path))) from None
