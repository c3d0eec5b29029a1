"""CSV and TSV files, with the delimiter that was detected."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from pipelines.data.text_files import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    NumberedRows,
    detect_encoding,
    encoding_note,
    text_lines,
)
from pipelines.errors import DataError, Problem

DEFAULT_DELIMITERS = {".csv": ",", ".tsv": "\t"}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SAMPLE_LINES = 200
"""Lines from which the delimiter is detected."""


def read_csv(path: Path, suffix: str) -> NumberedRows:
    """Yields the rows; every value is a text, unchanged. `suffix` is ".csv" or ".tsv".

    Raises DataError with the line of the first row that has more or fewer cells than the header.
    """
    # Not pandas: it fills short rows with NaN and changes values such as "001" and "NA" silently.
    lines = text_lines(path, detect_encoding(path, may_guess=True))
    sample = list(islice(lines, SAMPLE_LINES))
    first_line = sample[0] if sample else ""
    if "\r" in first_line.rstrip("\r\n") and not first_line.endswith("\n"):
        raise DataError(Problem("its lines end with CR only, as on old Macs; save it with LF or CRLF", str(path), 1))
    delimiter = _detect_delimiter(sample, DEFAULT_DELIMITERS[suffix])
    skip_spaces = _has_space_after_delimiters(first_line, delimiter)
    reader = csv.reader(chain(sample, lines), strict=True, delimiter=delimiter, skipinitialspace=skip_spaces)
    next_start = 1
    try:
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        _check_header(header, path, reader.line_num)
        next_start = reader.line_num + 1
        for cells in reader:
            start, next_start = next_start, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                contained = DELIMITERS[delimiter]
                message = f"has {len(cells)} cells, the header has {len(header)}; quote cells that contain {contained}"
                raise DataError(Problem(message, str(path), reader.line_num))
            if len(header) > 1 and [cell.strip(f"{BYTE_ORDER_MARK} ") for cell in cells] == header:
                message = "repeats the header, as in concatenated files; remove this line"
                raise DataError(Problem(message, str(path), start))
            yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        if "field limit" in str(error):
            message = "has a cell of more than 64 MB; is a quote not closed in this row?"
            raise DataError(Problem(message, str(path), next_start)) from None
        cause = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise DataError(Problem(f"is not CSV ({cause})", str(path), reader.line_num)) from None


def csv_notes(path: Path, suffix: str) -> list[str]:
    """What was detected and is not the default of the format: the delimiter and the encoding."""
    sample = list(islice(text_lines(path, detect_encoding(path, may_guess=True)), SAMPLE_LINES))
    delimiter = _detect_delimiter(sample, DEFAULT_DELIMITERS[suffix])
    notes = []
    if delimiter != DEFAULT_DELIMITERS[suffix]:
        notes.append(f"its cells are separated by {DELIMITERS[delimiter]}")
    if note := encoding_note(path, may_guess=True):
        notes.append(note)
    return notes


def _detect_delimiter(sample: list[str], default: str) -> str:
    """The default if it splits the header and all rows of the sample into as many cells, else the mark that does.

    If none does, a mark that splits the header: its rows are then reported as wrong. A file of one column has none.
    """
    counts = {mark: _cell_counts(sample, mark) for mark in (default, *(mark for mark in DELIMITERS if mark != default))}
    consistent = {mark: cells[0] for mark, cells in counts.items() if cells and len(set(cells)) == 1 and cells[0] > 1}
    if default in consistent:
        return default
    if consistent:
        return max(consistent, key=lambda mark: consistent[mark])
    if counts[default] and counts[default][0] > 1:
        return default
    # One column whose texts contain the other marks is more likely than rows that all are wrong.
    if counts[default] and set(counts[default]) == {1}:
        splitting = [mark for mark, cells in counts.items() if cells and cells[0] > 1]
        return splitting[0] if splitting else default
    splitting = [mark for mark, cells in counts.items() if cells and cells[0] > 1]
    return splitting[0] if splitting else default


def _cell_counts(sample: list[str], delimiter: str) -> list[int]:
    """The number of cells of each row of the sample; of a row that continues after the sample, none."""
    csv.field_size_limit(MAX_LINE_BYTES)  # a quote that is not closed would read the whole file into memory
    rows: list[int] = []
    reader = csv.reader(_without_end(sample), delimiter=delimiter, strict=True)
    try:
        rows.extend(len(cells) for cells in reader if cells)
    except csv.Error:
        if len(sample) < SAMPLE_LINES:
            return []
    return rows


def _without_end(sample: list[str]) -> Iterable[str]:
    return (line.lstrip(BYTE_ORDER_MARK) for line in sample)


def _has_space_after_delimiters(header: str, delimiter: str) -> bool:
    """Whether the header has a space after its delimiters, as in `text, label`. It is then part of the delimiter."""
    try:
        return any(name.startswith(" ") for name in next(csv.reader([header], delimiter=delimiter), [])[1:])
    except csv.Error:
        return False  # read_csv reports it


def _check_header(header: list[str], path: Path, line: int) -> None:
    """Raises DataError for column names that are empty or not unique."""
    if duplicates := sorted({name for name in header if header.count(name) > 1 and name}):
        raise DataError(Problem(f"two columns have the name {duplicates[0]!r}", str(path), line))
    if "" in header:
        raise DataError(Problem(f"column {header.index('') + 1} has no name in the header", str(path), line))
