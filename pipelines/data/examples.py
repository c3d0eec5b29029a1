"""Rows in, examples out: fill the task's templates, split, and mix tasks into an epoch."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.forgetting import HUB
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.templates import SPLIT_COLUMN, check_system_is_constant, describe_columns, fill_nonempty
from pipelines.errors import DataError, Problem
from pipelines.scoring.python_tests import row_tests

if TYPE_CHECKING:
    from pipelines.config.job import Job, Pipeline, Task

SPLITS = ("train", "validation", "test")
_OTHER_WORDS = {
    "train": ("training", "trn", "tr", "fit"),
    "validation": ("val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("testing", "tst", "heldout", "holdout"),
}
"""What other tools call the splits."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row with its templates filled: the unit that is trained on, evaluated or predicted.

    Every consumer of rows uses this type:

    - `load_examples` yields the rows of a job's tasks. They have a completion and a split.
    - A prompt without a known answer (`alfine predict`, a sample prompt) has `completion=None`. A prompt that belongs to no
      task has `task=""`.
    - A row of a retention eval of kind task has the eval's name as its `task`.

    `tokenize_rows.tokenize_examples` turns examples into `TokenizedExample`s, with or without a completion.

    Attributes:
        prompt: the user turn, before any chat template.
        completion: the reference, or None if there is none.
        system: the system turn, or None.
        file, row: the source of the row: its first line in `file`, or in a Parquet file its index from 1.
        fields: the columns of the row, without the split column.
        max_new_tokens: the row's own limit, or None for that of its task or job.
        title: the name of a sample prompt in the report.
    """

    prompt: str
    completion: str | None = None
    system: str | None = None
    task: str = ""
    split: str = "test"
    file: str
    row: int
    fields: Mapping[str, Any]
    max_new_tokens: int | None = None
    title: str | None = None

    @property
    def source_location(self) -> str:
        return f"{self.file}:{self.row}"


def load_examples(pipeline: Pipeline) -> Iterator[Example]:
    """Every task's rows, in the order of the YAML, as they are read; at the end DataError with all problems found."""
    problems: list[Problem] = []
    for name, task in pipeline.tasks.items():
        try:
            yield from load_task(name, task, pipeline)
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)


def referenced_files(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every file of rows that a job names, with the key that names it."""
    pipeline = job.pipeline
    for name, task in pipeline.tasks.items():
        where = ("pipeline", "tasks", name, "data")
        if isinstance(task.data, str):
            yield where, task.data
        else:
            yield from (((*where, split), file) for split, file in task.data.model_dump().items() if file is not None)
    if pipeline.report.prompts:
        yield ("pipeline", "report", "prompts"), pipeline.report.prompts
    if pipeline.forgetting.replay and pipeline.forgetting.replay.data:
        yield ("pipeline", "forgetting", "replay", "data"), pipeline.forgetting.replay.data
    guards = pipeline.forgetting.guards
    for name, guard in guards.items() if isinstance(guards, dict) else ():
        if not guard.data.startswith(HUB):
            yield ("pipeline", "forgetting", "guards", name, "data"), guard.data


def load_task(name: str, task: Task, pipeline: Pipeline) -> Iterator[Example]:
    """The examples of one task, each with its split; at the end DataError for the rows that gave none."""
    errors = RowErrors(f"task {name}: ")
    counts: Counter[str] = Counter()
    system = task.system if task.system is not None else pipeline.system
    for file, row, fields, split in _rows_with_split(task, pipeline):
        try:
            if split not in SPLITS:
                raise DataError(split)
            check_system_is_constant(system, fields)
            prompt, completion = (
                fill_nonempty(task.prompt, fields, "prompt"),
                fill_nonempty(task.completion, fields, "completion"),
            )
            if split == "test":
                _check_scored(task, fields)
        except DataError as error:
            errors.add(file, row, str(error))
            continue
        counts[split] += 1
        yield Example(
            task=name,
            split=split,
            file=file,
            row=row,
            system=system,
            prompt=prompt,
            completion=completion,
            fields={column: value for column, value in fields.items() if column != SPLIT_COLUMN},
        )
    errors.raise_if_any()
    for split in ("train", "test"):
        if not counts[split]:
            file = task.data if isinstance(task.data, str) else task.data.train
            raise DataError(Problem(f"task {name}: {_no_row(task, pipeline, split, counts)}", file))


def _check_scored(task: Task, fields: Mapping[str, Any]) -> None:
    """Raises DataError where a test row lacks a column, named by no template, that its score depends on."""
    group = task.group
    if group is not None:
        if group not in fields:
            raise DataError(f"group names the column {group}, {describe_columns(fields, group)}")
        if not isinstance(fields[group], str | int | float) or not str(fields[group]).strip():
            found = (
                "no value"
                if fields[group] is None or isinstance(fields[group], str)
                else "a value that is no text or number"
            )
            raise DataError(f"group names the column {group}, which has {found} here; every test row needs one")
    if task.metric == "unit_tests":
        row_tests(fields)


def _no_row(task: Task, pipeline: Pipeline, split: str, counts: Counter[str]) -> str:
    """What to do about a split without rows."""
    none = f"no row is left for the {split} split (it has {counts.total()} in all)"
    if not isinstance(task.data, str):
        return f"data names no {split} file; write {split}: FILE beside train"
    if any(SPLIT_COLUMN in row for _, row in islice(numbered_rows(Path(task.data)), 1)):
        return f"{none}; write {split} in the column `split` of some rows, or take the column out for a random split"
    if split == "test" and not pipeline.split.test:
        return f"{none}, since pipeline.split.test is 0; write test: 0.1"
    return f"{none}; give it more rows, or a `split` column, or change pipeline.split"


def _rows_with_split(task: Task, pipeline: Pipeline) -> Iterator[tuple[str, int, dict[str, Any], str]]:
    """File, row, columns, and the row's split or a sentence on why it has none."""
    if not isinstance(task.data, str):
        for split in SPLITS:
            file = getattr(task.data, split)
            for row, fields in numbered_rows(Path(file)) if file is not None else ():
                yield file, row, fields, _split_of_its_file(fields, split)
        return
    # Read twice rather than held: whether any row names its split is known at the last one.
    count, named = 0, 0
    for row, fields in numbered_rows(Path(task.data)):
        count += 1
        named = named or (row if _has_split(fields) else 0)
    splits = [] if named else random_splits(count, pipeline.split.validation, pipeline.split.test)
    for number, (row, fields) in enumerate(numbered_rows(Path(task.data))):
        if number >= count:
            raise DataError(Problem("has grown while it was read; start again when it is complete", task.data, row))
        yield task.data, row, fields, _named_split(fields, named) if named else splits[number]


def _has_split(fields: Mapping[str, Any]) -> bool:
    return fields.get(SPLIT_COLUMN) not in (None, "")


def _named_split(fields: Mapping[str, Any], first: int) -> str:
    """The split that a row names, or what is wrong with it; `first` is the first row that names one."""
    split = fields.get(SPLIT_COLUMN)
    if split in SPLITS:
        return str(split)
    if not _has_split(fields):
        return f"has no split, though row {first} has one; write one of {', '.join(SPLITS)}"
    meant = _meant(split)
    return f"split is {split!r:.60}; write {meant or f'one of {", ".join(SPLITS)}'}"


def _split_of_its_file(fields: Mapping[str, Any], split: str) -> str:
    """The split that the file was named for, unless the row's own column says another."""
    own = _meant(fields.get(SPLIT_COLUMN))
    if own in (None, split):
        return split
    both = f"its column `split` says {own}, but data names the file under {split}"
    return f"{both}; take the column out, or name the file under {own}"


def _meant(split: Any) -> str | None:
    """The split that another word for it, or another way to write it, stands for."""
    word = re.sub(r"[\W_]", "", split).casefold() if isinstance(split, str) else ""
    return next((name for name, words in _OTHER_WORDS.items() if word == name or word in words), None)


def random_splits(count: int, validation: float, test: float) -> list[str]:
    """A split for each of `count` rows. It does not follow the job's seed: runs that differ in their
    seed alone are compared on the same test rows."""
    order = list(range(count))
    random.Random(count).shuffle(order)
    test_rows = max(1, round(count * test)) if test else 0
    validation_rows = max(1, round(count * validation)) if validation and count > 2 else 0
    splits = ["train"] * count
    for position, row in enumerate(order[: test_rows + validation_rows]):
        splits[row] = "test" if position < test_rows else "validation"
    return splits
