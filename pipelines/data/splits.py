"""Splits: whether a row belongs to train, validation or test.

A row's split comes from its file (`data: {train: …, test: …}`), else from its column `split`, else it is drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.readers import numbered_rows
from pipelines.data.templates import SPLIT_COLUMN
from pipelines.errors import DataError, Problem

if TYPE_CHECKING:
    from pipelines.config.pipeline import PipelineSettings, Task

SPLITS = ("train", "validation", "test")
_SYNONYMS = {
    "train": ("training", "trn", "tr", "fit"),
    "validation": ("val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("testing", "tst", "heldout", "holdout"),
}
"""Names of the splits in other tools and data sets."""


@dataclass(frozen=True)
class SplitRow:
    """A row with its split. If the split cannot be determined, `split` is None and `error` says why.

    `row_number` is the row's line in `file`, or in a Parquet file its index from 1. `fields` are its columns.
    """

    file: str
    row_number: int
    fields: dict[str, Any]
    split: str | None
    error: str = ""


def read_split_rows(task: Task, pipeline: PipelineSettings) -> Iterator[SplitRow]:
    """Yields every row of a task with its split. Raises DataError for a file that cannot be read."""
    if not isinstance(task.data, str):
        for split in SPLITS:
            file = getattr(task.data, split)
            for row_number, fields in numbered_rows(Path(file)) if file is not None else ():
                error = _contradicts_file(fields, split)
                yield SplitRow(file, row_number, fields, None if error else split, error)
        return
    # The file is read twice, not held in memory: only its last row shows whether any row names a split.
    count, first_named = 0, 0
    for row_number, fields in numbered_rows(Path(task.data)):
        count += 1
        first_named = first_named or (row_number if _names_split(fields) else 0)
    drawn = [] if first_named else random_splits(count, pipeline.split.validation, pipeline.split.test)
    for index, (row_number, fields) in enumerate(numbered_rows(Path(task.data))):
        if index >= count:
            raise DataError(
                Problem("has grown while it was read; run again once the file is complete", task.data, row_number)
            )
        if not first_named:
            yield SplitRow(task.data, row_number, fields, drawn[index])
            continue
        error = _wrong_split_column(fields, first_named)
        yield SplitRow(task.data, row_number, fields, None if error else fields[SPLIT_COLUMN], error)


def random_splits(count: int, validation: float, test: float) -> list[str]:
    """Draws a split for each of `count` rows; `validation` and `test` are fractions of them.

    The draw does not depend on the job's seed: runs that differ in their seed only are compared on the same test rows.
    Raise PREPARED_FORMAT in stages/digests.py when rows are split in another way; the digest holds no version of
    alfine.
    """
    order = list(range(count))
    random.Random(count).shuffle(order)
    test_rows = max(1, round(count * test)) if test else 0
    validation_rows = max(1, round(count * validation)) if validation and count > 2 else 0
    splits = ["train"] * count
    for position, index in enumerate(order[: test_rows + validation_rows]):
        splits[index] = "test" if position < test_rows else "validation"
    return splits


def _names_split(fields: Mapping[str, Any]) -> bool:
    return fields.get(SPLIT_COLUMN) not in (None, "")


def _wrong_split_column(fields: Mapping[str, Any], first_named: int) -> str:
    """The error in the row's column `split`, or "". `first_named` is the first row that has a value there."""
    split = fields.get(SPLIT_COLUMN)
    if split in SPLITS:
        return ""
    if not _names_split(fields):
        return f"has no split, though row {first_named} has one; write one of {', '.join(SPLITS)}"
    return f"split is {split!r:.60}; write {_canonical_split(split) or f'one of {", ".join(SPLITS)}'}"


def _contradicts_file(fields: Mapping[str, Any], split: str) -> str:
    """The error if the row's column `split` names another split than its file, else ""."""
    own = _canonical_split(fields.get(SPLIT_COLUMN))
    if own in (None, split):
        return ""
    contradiction = f"its column `split` has {own}, but data names the file under {split}"
    return f"{contradiction}; remove the column, or name the file under {own}"


def _canonical_split(name: Any) -> str | None:
    """The split that `name` means in any spelling or by a synonym, or None."""
    word = re.sub(r"[\W_]", "", name).casefold() if isinstance(name, str) else ""
    return next((split for split, synonyms in _SYNONYMS.items() if word == split or word in synonyms), None)
