"""A random sample of the rows of a file, its longest rows and its number of rows, in one pass and little memory."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data.jsonl_files import parse_line
from pipelines.data.readers import check_format, holds_json_lines, numbered_rows
from pipelines.data.text_files import BYTE_ORDER_MARK, detect_encoding, text_lines
from pipelines.errors import DataError, Problem

NUM_LONGEST = 8
"""Rows that are kept because they are long: the largest micro-batch decides about memory. Length is counted in
characters; which row has the most tokens is not known before tokenization."""


@dataclass
class RowSample:
    """A random sample of at most `size` rows of a file, and its longest rows, each with its row number.

    Attributes:
        count: the number of rows of the file.
        rows: the sample, in the order of the file.
        longest: the longest rows.
    """

    size: int
    count: int = 0
    rows: list[tuple[int, Any]] = field(default_factory=list)
    longest: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the sample has every row."""
        return self.count <= self.size


def sample_rows(path: Path, size: int, seed: int) -> RowSample:
    """Samples the rows of a file. A file of lines is not parsed, except for the rows of the sample.

    Raises DataError for a file that cannot be read, and for a sampled row that is not valid.
    """
    check_format(path)
    if holds_json_lines(path):
        return _parsed(_draw(_lines(path), size, seed), path)
    return _draw(_sized_rows(path), size, seed)


def _draw(rows: Iterator[tuple[int, int, Any]], size: int, seed: int) -> RowSample:
    """A sample of (row number, length, row). Vitter's algorithm R, 1985."""
    generator, sample = random.Random(seed), RowSample(size)
    drawn: list[tuple[int, int, Any]] = []
    longest: list[tuple[int, int, int, Any]] = []
    for number, length, row in rows:
        position = sample.count  # row numbers of a JSON array on one line are all 1
        if position < size:
            drawn.append((position, number, row))
        else:
            index = int(generator.random() * (position + 1))
            if index < size:
                drawn[index] = (position, number, row)
        sample.count += 1
        if len(longest) < NUM_LONGEST:
            heapq.heappush(longest, (length, -position, number, row))
        elif length > longest[0][0]:
            heapq.heapreplace(longest, (length, -position, number, row))
    sample.rows = [(number, row) for _, number, row in sorted(drawn, key=lambda entry: entry[0])]
    sample.longest = [(number, row) for _, _, number, row in longest]
    return sample


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """The lines of a file that are not blank."""
    for number, line in enumerate(text_lines(path, detect_encoding(path, may_guess=False)), start=1):
        if not line.isspace():
            yield number, len(line), line.lstrip(BYTE_ORDER_MARK)


def _parsed(sample: RowSample, path: Path) -> RowSample:
    if not sample.count:
        raise DataError(Problem("has no rows", str(path)))
    sample.rows = [(number, parse_line(line, path, number)) for number, line in sample.rows]
    sample.longest = [(number, parse_line(line, path, number)) for number, line in sample.longest]
    return sample


def _sized_rows(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for number, row in numbered_rows(path):
        yield number, sum(len(value) if isinstance(value, str) else 16 for value in row.values()), row
