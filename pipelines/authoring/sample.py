"""The rows of a data file that a job is written from: all of them, or the first ones of a large file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipelines.data.readers import numbered_rows, read_notes
from pipelines.data.sources import SPLITS, DataSource, canonical_split, open_source
from pipelines.data.templates import SPLIT_COLUMN
from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import dump

MAX_ROWS = 20_000
"""Rows that are read, shared among the files of a source."""
MAX_CHARACTERS = 50_000_000
"""Characters of rows that are read."""


@dataclass(frozen=True)
class Row:
    """A row: its columns, where it is, and the split of its file."""

    fields: dict[str, Any]
    file: str
    number: int
    split: str | None = None

    @property
    def location(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass
class Sample:
    """The rows that were read.

    data: the file, as it will be in the config.
    is_complete: whether they are all rows of the source.
    notes: what was detected in the files.
    """

    data: str
    source: DataSource
    rows: list[Row]
    is_complete: bool
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row.fields))

    def values(self, column: str) -> list[Any]:
        """The value of each row in a column, None where it has none."""
        return [row.fields.get(column) for row in self.rows]

    def num_rows_by_split(self) -> Counter[str | None]:
        """The number of rows per split that files or the column `split` name; None: those that have none."""
        by_file = self.source.has_splits
        return Counter(row.split if by_file else canonical_split(row.fields.get(SPLIT_COLUMN)) for row in self.rows)

    @property
    def names_splits(self) -> bool:
        """Whether files or the column `split` say which rows are the test."""
        return self.source.has_splits or any(row.fields.get(SPLIT_COLUMN) not in (None, "") for row in self.rows)


def read_sample(data: str) -> Sample:
    """Reads the rows of a file, a pattern, a folder or a data set on the Hub.

    Of large files the first rows are read. Raises DataError for files that cannot be read and for rows that are not
    valid.
    """
    source = open_source(data)
    notes = list(source.notes)
    files = sorted(source.files, key=lambda file: SPLITS.index(file.split) if file.split else 0)
    max_rows, max_characters = max(1, MAX_ROWS // len(files)), MAX_CHARACTERS // len(files)
    rows: list[Row] = []
    is_complete = True
    for file in files:
        notes += [f"{file.name}: {note}" for note in read_notes(file.path)]
        num_rows = num_characters = 0
        numbered = numbered_rows(file.path)
        for number, fields in islice(numbered, max_rows):
            rows.append(Row(fields, file.name, number, file.split))
            num_rows += 1
            num_characters += len(dump(fields))
            if num_characters > max_characters:
                break
        if next(numbered, None) is not None:
            is_complete = False
            notes.append(f"{file.name} is large: its first {num_rows:,} rows were read; alfine check reads all of them")
    if not rows:
        raise DataError(Problem("has no rows", data))
    return Sample(data, source, rows, is_complete, notes)
