"""Splits: whether a row belongs to train, validation or test.

A row's split comes from its file (`data: {train: …, test: …}`), else from its column `split`, else it is drawn.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.data.readers import numbered_rows
from pipelines.data.sources import SPLITS, DataFile, canonical_split, open_source
from pipelines.data.stratified_split import random_splits
from pipelines.data.templates import SPLIT_COLUMN, template_columns
from pipelines.errors import DataError, Problem
from pipelines.scoring.metric import METRICS

if TYPE_CHECKING:
    from pipelines.config.pipeline import PipelineSettings, Split, Task


@dataclass(frozen=True)
class SplitRow:
    """A row with its split. If the split cannot be determined, `split` is None and `error` says why.

    `row_number` is the row's line in `file`, or its index from 1 in a file without lines. `fields` are its columns.
    """

    file: str
    row_number: int
    fields: dict[str, Any]
    split: str | None
    error: str = ""


def read_split_rows(task: Task, pipeline: PipelineSettings) -> Iterator[SplitRow]:
    """Yields every row of a task with its split. Raises DataError for a file that cannot be read."""
    source = open_source(task.data)
    if not source.has_splits:
        yield from _split_by_column_or_draw(source.files, task, pipeline.split)
        return
    missing = {
        split: fraction
        for split, fraction in (("validation", pipeline.split.validation), ("test", pipeline.split.test))
        if fraction and not source.of_split(split)
    }
    if missing:
        yield from _draw_from_train(source.of_split("train"), task, missing)
    for split in SPLITS[1:] if missing else SPLITS:
        for file in source.of_split(split):
            for row_number, fields in numbered_rows(file.path):
                error = _contradicts_file(fields, split)
                yield SplitRow(file.name, row_number, fields, None if error else split, error)


def _split_by_column_or_draw(files: Sequence[DataFile], task: Task, split: Split) -> Iterator[SplitRow]:
    """Yields the rows of files that belong to no split."""
    # The files are read twice, not held in memory: only the last row shows whether any row names a split.
    survey = _survey(files, task)
    drawn = [] if survey.first_named else survey.draw(split.validation, split.test)
    for index, (file, row_number, fields) in enumerate(_rows(files)):
        _check_not_grown(index, survey, file, row_number)
        if not survey.first_named:
            yield SplitRow(file.name, row_number, fields, drawn[index])
            continue
        error = _wrong_split_column(fields, survey.first_named)
        yield SplitRow(file.name, row_number, fields, None if error else fields[SPLIT_COLUMN], error)


def _draw_from_train(files: Sequence[DataFile], task: Task, fractions: Mapping[str, float]) -> Iterator[SplitRow]:
    """Yields the rows of the training files, with those drawn that belong to a split which has no files."""
    survey = _survey(files, task)
    drawn = survey.draw(fractions.get("validation", 0.0), fractions.get("test", 0.0))
    for index, (file, row_number, fields) in enumerate(_rows(files)):
        _check_not_grown(index, survey, file, row_number)
        error = _contradicts_file(fields, "train")
        yield SplitRow(file.name, row_number, fields, None if error else drawn[index], error)


def _rows(files: Sequence[DataFile]) -> Iterator[tuple[DataFile, int, dict[str, Any]]]:
    for file in files:
        for row_number, fields in numbered_rows(file.path):
            yield file, row_number, fields


def _check_not_grown(index: int, survey: _Survey, file: DataFile, row_number: int) -> None:
    if index >= survey.count:
        raise DataError(
            Problem("has grown while it was read; run again once the file is complete", file.name, row_number)
        )


@dataclass
class _Survey:
    """What the first reading of the files shows.

    Attributes:
        count: the number of rows.
        first_named: the first row that names its split, 0 if none does.
        groups: the code of each row's label or cluster.
        is_clustered: whether `groups` are clusters.
    """

    count: int = 0
    first_named: int = 0
    groups: array[int] = field(default_factory=lambda: array("q"))
    is_clustered: bool = False

    def draw(self, validation: float, test: float) -> list[str]:
        """A split for each row, see `random_splits`."""
        groups = self.groups or None
        if self.is_clustered:
            return random_splits(self.count, validation, test, clusters=groups)
        return random_splits(self.count, validation, test, strata=groups)


def _survey(files: Sequence[DataFile], task: Task) -> _Survey:
    survey, codes = _Survey(is_clustered=task.cluster_by is not None), dict[str, int]()
    column = task.cluster_by or label_column(task)
    for _, row_number, fields in _rows(files):
        survey.count += 1
        survey.first_named = survey.first_named or (row_number if _names_split(fields) else 0)
        if column is not None:
            # Rows without a value are rejected later, with their line.
            survey.groups.append(codes.setdefault(str(fields.get(column)), len(codes)))
    return survey


def label_column(task: Task) -> str | None:
    """The column with the label of a row, if the task's metric compares labels and its completion is one column."""
    metric = METRICS.get(task.metric) if task.metric in METRICS else None
    completion = task.completion
    if metric is None or not metric.single_label or not completion or task.template == "jinja":
        return None
    columns = template_columns(completion)
    return columns[0] if len(columns) == 1 and completion.strip() == f"{{{columns[0]}}}" else None


def _names_split(fields: Mapping[str, Any]) -> bool:
    return fields.get(SPLIT_COLUMN) not in (None, "")


def _wrong_split_column(fields: Mapping[str, Any], first_named: int) -> str:
    """The error in the row's column `split`, or "". `first_named` is the first row that has a value there."""
    split = fields.get(SPLIT_COLUMN)
    if split in SPLITS:
        return ""
    if not _names_split(fields):
        return f"has no split, though row {first_named} has one; write one of {', '.join(SPLITS)}"
    return f"split is {split!r:.60}; write {canonical_split(split) or f'one of {", ".join(SPLITS)}'}"


def _contradicts_file(fields: Mapping[str, Any], split: str) -> str:
    """The error if the row's column `split` names another split than its file, else ""."""
    own = canonical_split(fields.get(SPLIT_COLUMN))
    if own in (None, split):
        return ""
    contradiction = f"its column `split` has {own}, but data names the file under {split}"
    return f"{contradiction}; remove the column, or name the file under {own}"
