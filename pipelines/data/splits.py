"""Splits: whether a row belongs to train, validation or test.

A row's split comes from its file (`data: {train: …, test: …}`), else from its column `split`, else it is drawn.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.data.readers import numbered_rows
from pipelines.data.sources import SPLITS, DataFile, canonical_split, open_source
from pipelines.data.stratified_split import random_splits, rank_examples, sample_rows
from pipelines.data.templates import SPLIT_COLUMN, template_columns
from pipelines.errors import DataError, Problem
from pipelines.scoring.metric import METRICS

if TYPE_CHECKING:
    from pipelines.config.pipeline import PipelineSettings, Task


MAX_CANDIDATES = 64
"""Training rows of a task that may become examples in a prompt: some may be too long."""


@dataclass(frozen=True)
class SplitRow:
    """A row with its split. If the split cannot be determined, `split` is None and `error` says why.

    `row_number` is the row's line in `file`, or its index from 1 in a file without lines. `fields` are its columns.
    `drawn` is False for a row of the validation or test split that is not evaluated, see `report.test_rows`. A training
    row that may become an example in a prompt has its `rank` among these.
    """

    file: str
    row_number: int
    fields: dict[str, Any]
    split: str | None
    error: str = ""
    drawn: bool = True
    rank: int | None = None


Wanted = Callable[[str, bool, int | None], bool]
"""Whether a row is wanted, by its split, whether it was drawn, and its rank."""


def read_split_rows(task: Task, pipeline: PipelineSettings, wanted: Wanted | None = None) -> Iterator[SplitRow]:
    """Yields every row of a task with its split, or those that are `wanted`, and those without a split. Raises
    DataError for a file that cannot be read.

    The files are read twice, not held in memory: only the last row shows which rows are drawn.
    """
    source = open_source(task.data)
    fractions = {"validation": pipeline.split.validation, "test": pipeline.split.test}
    if source.has_splits:
        fractions = {split: part for split, part in fractions.items() if part and not source.of_split(split)}
    order = ("train", *(split for split in SPLITS[1:])) if source.has_splits else (None,)
    files = [file for split in order for file in source.of_split(split)]
    survey = _survey(files, task)
    plan = _plan(survey, task, pipeline, fractions, source.has_splits)
    kept = None if wanted is None else _wanted_rows(plan, survey, wanted)
    for index, (file, row_number, fields) in enumerate(_rows(files, kept)):
        if index >= survey.count:
            message = "has grown while it was read; run again once the file is complete"
            raise DataError(Problem(message, file.name, row_number))
        if kept is not None and index not in kept:
            continue
        if file.split is not None:
            error = _contradicts_file(fields, file.split)
        else:
            error = _wrong_split_column(fields, survey) if survey.first_named else ""
        split = None if error else SPLITS[plan.splits[index]]
        yield SplitRow(file.name, row_number, fields, split, error, index not in plan.left_out, plan.ranks.get(index))


def _wanted_rows(plan: _Plan, survey: _Survey, wanted: Wanted) -> set[int]:
    """The indices of the rows that are wanted, and of those whose split is an error."""
    kept = {
        index
        for index, split in enumerate(plan.splits)
        if split == _UNKNOWN or wanted(SPLITS[split], index not in plan.left_out, plan.ranks.get(index))
    }
    return kept.union(survey.contradictory)


def draws_splits(task: Task, pipeline: PipelineSettings) -> bool:
    """Whether rows of the task are split at random, from the first row of a file without a split: if one row names its
    split, all must."""
    source = open_source(task.data)
    if source.has_splits:
        return any(
            fraction and not source.of_split(split)
            for split, fraction in (("validation", pipeline.split.validation), ("test", pipeline.split.test))
        )
    _, _, fields = next(_rows(source.files))
    return fields.get(SPLIT_COLUMN) in (None, "")


def _rows(
    files: Sequence[DataFile], wanted: Container[int] | None = None
) -> Iterator[tuple[DataFile, int, dict[str, Any]]]:
    """The rows of all files. Those whose index, over all files, is not in `wanted` may come without their columns."""
    start = 0
    for file in files:
        count = 0
        for row_number, fields in numbered_rows(file.path, None if wanted is None else _Shifted(wanted, start)):
            count += 1
            yield file, row_number, fields
        start += count


@dataclass(frozen=True)
class _Shifted:
    """The indices of rows within a file that begins at the index `start`."""

    indices: Container[int]
    start: int

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index + self.start in self.indices


_UNKNOWN = -1


@dataclass
class _Survey:
    """What the first reading of the files shows.

    Attributes:
        count: the number of rows.
        first_named: the first row that names its split in a file without one, 0 if none does.
        first_unknown: the first value of a column `split` that means no split.
        splits: the index in SPLITS that each row's file or column says, else _UNKNOWN.
        contradictory: the rows whose column names another split than their file.
        labels, clusters: the code of each row's label and cluster; None if the task has none.
    """

    count: int = 0
    first_named: int = 0
    first_unknown: object = None
    splits: array[int] = field(default_factory=lambda: array("b"))
    contradictory: list[int] = field(default_factory=list)
    labels: array[int] | None = None
    clusters: array[int] | None = None

    def draw(self, fractions: Mapping[str, float], count: int) -> list[str]:
        """A split for each of the first `count` rows, see `random_splits`."""
        validation, test = fractions.get("validation", 0.0), fractions.get("test", 0.0)
        if self.clusters is not None:
            return random_splits(count, validation, test, clusters=self.clusters[:count])
        strata = None if self.labels is None else self.labels[:count]
        return random_splits(count, validation, test, strata=strata)


def _survey(files: Sequence[DataFile], task: Task) -> _Survey:
    survey = _Survey()
    label, cluster = label_column(task) or "", task.cluster_by or ""
    survey.labels = array("q") if label else None
    survey.clusters = array("q") if cluster else None
    label_codes, cluster_codes = dict[str, int](), dict[str, int]()
    for file, row_number, fields in _rows(files):
        survey.count += 1
        name, own = file.split, fields.get(SPLIT_COLUMN)
        if name is None and (name := own) not in (None, ""):
            survey.first_named = survey.first_named or row_number
            if survey.first_unknown is None and canonical_split(own) is None:
                survey.first_unknown = own
        if file.split is not None and own is not None and _contradicts_file(fields, file.split):
            survey.contradictory.append(len(survey.splits))
        survey.splits.append(SPLITS.index(name) if name in SPLITS else _UNKNOWN)
        # Rows without a value are rejected later, with their line.
        if survey.labels is not None:
            survey.labels.append(label_codes.setdefault(str(fields.get(label)), len(label_codes)))
        if survey.clusters is not None:
            survey.clusters.append(cluster_codes.setdefault(str(fields.get(cluster)), len(cluster_codes)))
    return survey


@dataclass(frozen=True)
class _Plan:
    """What happens to each row: its split, as an index in SPLITS; those of validation and test that are left out; and
    the ranks of the training rows that may become examples in a prompt."""

    splits: array[int]
    left_out: set[int]
    ranks: Mapping[int, int]


def _plan(
    survey: _Survey, task: Task, pipeline: PipelineSettings, fractions: Mapping[str, float], by_file: bool
) -> _Plan:
    """The plan of all rows. `fractions`: the splits that are drawn, unless a row of a file without a split names its
    split."""
    splits = survey.splits
    if by_file and fractions:
        train = SPLITS.index("train")
        count = sum(split == train for split in splits)  # these come first
        splits = array("b", map(SPLITS.index, survey.draw(fractions, count))) + splits[count:]
    elif not by_file and not survey.first_named:
        splits = array("b", map(SPLITS.index, survey.draw(fractions, survey.count)))
    rows: list[list[int]] = [[] for _ in SPLITS]
    for index, code in enumerate(splits):
        if code != _UNKNOWN:
            rows[code].append(index)
    left_out: set[int] = set()
    seed = pipeline.report.seed
    for split, held_out in zip(SPLITS[1:], rows[1:], strict=True):
        limit = pipeline.row_limit(task, split)
        if limit is not None and len(held_out) > limit:
            # The metric and `cluster_by` decide how test rows are drawn. A training must not depend on them.
            labels, clusters = (survey.labels, survey.clusters) if split == "test" else (None, None)
            drawn = sample_rows(held_out, limit, seed, strata=labels, clusters=clusters)
            left_out.update(set(held_out) - drawn)
    return _Plan(splits, left_out, rank_examples(rows[0], MAX_CANDIDATES, seed, survey.labels))


def label_column(task: Task) -> str | None:
    """The column with the label of a row, if the task's metric compares labels and its completion is one column."""
    metric = METRICS.get(task.metric) if task.metric in METRICS else None
    completion = task.completion
    if metric is None or not metric.single_label or not completion or task.template == "jinja":
        return None
    columns = template_columns(completion)
    return columns[0] if len(columns) == 1 and completion.strip() == f"{{{columns[0]}}}" else None


def _wrong_split_column(fields: Mapping[str, Any], survey: _Survey) -> str:
    """The error in the row's column `split`, or ""."""
    split = fields.get(SPLIT_COLUMN)
    if split in SPLITS:
        return ""
    listed = ", ".join(SPLITS)
    if split in (None, ""):
        return f"has no split, though row {survey.first_named} has one; write one of {listed}"
    if meant := canonical_split(split):
        return f"split is {split!r}; write {meant}"
    # The same for all rows, so that they are one problem.
    message = f"its column `split` holds no split, as {survey.first_unknown!r:.60}"
    return f"{message}; write one of {listed}, or rename the column if it is another thing"


def _contradicts_file(fields: Mapping[str, Any], split: str) -> str:
    """The error if the row's column `split` names another split than its file, else ""."""
    own = canonical_split(fields.get(SPLIT_COLUMN))
    if own in (None, split):
        return ""
    contradiction = f"its column `split` has {own}, but data names the file under {split}"
    return f"{contradiction}; remove the column, or name the file under {own}"
