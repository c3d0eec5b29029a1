"""Readers: stream the rows of a file in any of the supported formats. The file may be larger than memory.

Every value of a row is a JSON value or a `NonTextValue`, so that all rows can be written as JSON (`strict_json.dump`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.data.arrow_files import is_saved_dataset, read_saved_dataset, saved_splits
from pipelines.data.csv_files import csv_notes, read_csv
from pipelines.data.json_files import is_array, is_json_lines, json_notes, read_json_array
from pipelines.data.jsonl_files import read_jsonl
from pipelines.data.parquet import read_parquet
from pipelines.data.spreadsheets import read_xlsx, xlsx_notes
from pipelines.data.text_files import (
    COMPRESSIONS,
    NumberedRows,
    data_suffix,
    encoding_note,
    is_decompression_error,
    open_bytes,
    read_error,
)
from pipelines.errors import DataError, Problem

MAX_PROBLEMS = 10
"""Kinds of problems that are reported for one file."""
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".xlsx", ".parquet")
"""The suffixes of data files. The text formats may be compressed, see `text_files.COMPRESSIONS`."""
_FORMATS = ".jsonl, .json, .csv, .tsv, .xlsx or .parquet"
_MAGIC_BYTES = {
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or name it .xlsx",
    b"\x1f\x8b": "compressed with gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; name it .zst",
    b"BZh": "compressed with bzip2; name it .bz2",
    b"\xfd7zXZ": "compressed with xz; name it .xz",
    b"PAR1": "a Parquet file; name it .parquet",
    b"%PDF": "a PDF; save its table as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as .xlsx or CSV",
}
"""First bytes of files that are not text, with what to do about them."""
_OTHER_FORMATS = {
    ".xls": "save it as .xlsx or CSV",
    ".xlsm": "save it as .xlsx or CSV",
    ".ods": "save it as .xlsx or CSV",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".arrow": "name the folder that datasets.save_to_disk has written, or save it as Parquet",
    ".feather": "save it as Parquet",
    ".pkl": "pickles can run code; save it as Parquet or JSON Lines",
    ".pickle": "pickles can run code; save it as Parquet or JSON Lines",
    ".txt": "write one JSON object per line, and name it .jsonl",
    ".yaml": "write it as JSON",
    ".yml": "write it as JSON",
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file by column. Raises DataError with file and line."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path, wanted: Container[int] | None = None) -> NumberedRows:
    """Yields the rows as they are read, each after the line on which it begins (of a file without lines: its index
    from 1).

    wanted: the indices of the rows that are needed; others may come without their columns, which takes less time.

    `path` is a file, or a folder that `datasets.save_to_disk` has written. White space around column names is stripped.
    Raises DataError with file and line at the first row that is not valid.
    """
    is_empty = True
    clean_names: tuple[str, ...] | None = None
    with _located_os_errors(path):
        for line, row in _reader(path, wanted):
            is_empty = False
            if row and (names := tuple(row)) != clean_names:  # most rows have the columns of the row before
                row = _strip_column_names(row, path, line)
                clean_names = names if names == tuple(row) else None
            yield line, row
    if is_empty:
        raise DataError(Problem("has no rows", str(path)))


def read_notes(path: Path) -> list[str]:
    """What was detected in a file and is not the default of its format, as ends of sentences that begin with its name.

    Raises DataError for a file that cannot be read.
    """
    suffix = data_suffix(path)
    with _located_os_errors(path):
        check_format(path)
        if suffix in (".csv", ".tsv"):
            return csv_notes(path, suffix)
        if suffix == ".xlsx":
            return xlsx_notes(path)
        if suffix in (".jsonl", ".ndjson", ".json"):
            return [*_json_notes(path, suffix), *filter(None, [encoding_note(path, may_guess=False)])]
    return []


def notes_on_file(name: str) -> list[str]:
    """The notes on a file as sentences; none on one that is no data file, or cannot be read."""
    path = Path(name)
    try:
        is_data_file = data_suffix(path) in SUFFIXES and path.is_file()
        return [f"{name}: {note}" for note in read_notes(path)] if is_data_file else []
    except (DataError, OSError, ValueError):
        return []


def _json_notes(path: Path, suffix: str) -> list[str]:
    if suffix != ".json":
        return ["holds one array of objects, not one object per line; read as .json"] if is_array(path) else []
    if is_json_lines(path):
        return ["holds one object per line; read as .jsonl"]
    return json_notes(path)


@contextmanager
def _located_os_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system into DataErrors with the name of the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(Problem("no such file", str(path))) from None
    except IsADirectoryError:
        raise DataError(Problem("is a folder; name a file", str(path))) from None
    except PermissionError:
        raise DataError(Problem("permission denied", str(path))) from None
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror or error}", str(path))) from None


def _reader(path: Path, wanted: Container[int] | None) -> NumberedRows:
    """The rows of the file, by the reader of its format."""
    if path.is_dir():
        if is_saved_dataset(path):
            return read_saved_dataset(path)
        if splits := saved_splits(path):
            raise DataError(
                Problem(f"holds the splits {', '.join(splits)}; name one, as in {path / splits[0]}", str(path))
            )
        raise IsADirectoryError(path)
    check_format(path)
    suffix = data_suffix(path)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, suffix)
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix == ".xlsx":
        return read_xlsx(path)
    return read_jsonl(path, wanted) if holds_json_lines(path) else read_json_array(path)


def holds_json_lines(path: Path) -> bool:
    """Whether a file is JSON Lines, whatever its suffix."""
    suffix = data_suffix(path)
    if suffix not in (".jsonl", ".ndjson", ".json") or path.is_dir():
        return False
    # Many tools write JSON Lines to files named .json, and arrays to files named .jsonl.
    return is_json_lines(path) if suffix == ".json" else not is_array(path)


def check_format(path: Path) -> None:
    """Raises DataError for a file that is not of a supported format, or whose first bytes are those of another one."""
    if path.is_dir():
        return
    suffix = data_suffix(path)
    if suffix not in SUFFIXES:
        advice = f"; {_OTHER_FORMATS[suffix]}" if suffix in _OTHER_FORMATS else ""
        found = f", not {suffix!r}" if suffix else "; this name has no such ending"
        raise DataError(Problem(f"files end in {_FORMATS}{found}{advice}", str(path)))
    is_compressed = path.suffix.lower() in COMPRESSIONS
    if is_compressed and suffix not in TEXT_SUFFIXES:
        raise DataError(Problem(f"a {suffix} file is compressed already; unpack it", str(path)))
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise DataError(Problem("is not a file (a pipe, socket or device)", str(path)))
    if suffix not in TEXT_SUFFIXES or not path.exists():
        return
    try:
        with open_bytes(path) as file:
            first_bytes = file.read(8)
    except Exception as error:
        if is_decompression_error(error, path):
            raise read_error(path) from None
        raise
    for magic_bytes, description in _MAGIC_BYTES.items():
        if first_bytes.startswith(magic_bytes):
            raise DataError(Problem(f"despite its name, this is {description}", str(path)))


class RowErrors:
    """Collects the rows of files that cannot be used, grouped by message: one problem per kind, at its first row.

    Only the first MAX_PROBLEMS kinds are kept, and numbers of rows, so that memory does not grow with the files.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._kinds: dict[tuple[str, str], tuple[int, int]] = {}
        """For each file and message, its first row and the number of its rows."""
        self._num_others = 0
        self._first_other = ("", 0)
        """File and number of the first row of another kind."""

    def add(self, file: str, row_number: int, message: str) -> None:
        kind = (file, message)
        if kind not in self._kinds and len(self._kinds) >= MAX_PROBLEMS:
            self._first_other = self._first_other if self._num_others else (file, row_number)
            self._num_others += 1
            return
        first, count = self._kinds.get(kind, (row_number, 0))
        self._kinds[kind] = first, count + 1

    def raise_if_any(self) -> None:
        """Raises DataError for the first MAX_PROBLEMS kinds, with a count of the other rows."""
        if not self._kinds:
            return
        problems = [
            Problem(f"{self.prefix}{message}" + (f" ({count:,} such rows)" if count > 1 else ""), file, first)
            for (file, message), (first, count) in self._kinds.items()
        ]
        if self._num_others:
            message = f"{self.prefix}{self._num_others:,} more rows have other problems"
            problems.append(Problem(message, *self._first_other))
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
