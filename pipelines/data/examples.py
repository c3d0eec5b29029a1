"""Rows in, examples out: fill the task's templates, split, and mix tasks into an epoch."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.forgetting import HUB
from pipelines.data.readers import Mistakes, numbered_rows
from pipelines.data.templates import SPLIT_COLUMN, check_system, filled, row_has, template_columns
from pipelines.errors import DataError, Problem
from pipelines.scoring.python_tests import row_tests

if TYPE_CHECKING:
    import numpy as np

    from pipelines.config.job import Job, Pipeline, Task

SPLITS = ("train", "validation", "test")
_OTHER_WORDS = {
    "train": ("training", "trn", "tr", "fit"),
    "validation": ("val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("testing", "tst", "heldout", "holdout"),
}
"""What other tools call the splits."""


@dataclass(frozen=True)
class Example:
    """One row of one task, with its templates filled.

    `row` is the line of `file` on which it begins; in a Parquet file, the row's number from 1. `fields` are its columns.
    """

    task: str
    split: str
    row: int
    file: str
    system: str | None
    prompt: str
    completion: str
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
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


def named_files(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
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


def check_files(job: Job) -> None:
    """Raises DataError, with the config's lines, for what is wrong with the data before a row is read: a file that is not
    there, one file for two splits, a prompt that holds the answer."""
    problems = [
        job.problem(f"{'.'.join(where)}: there is no file {file!r}; paths begin where alfine is started", *where)
        for where, file in named_files(job)
        if not Path(file).exists()
    ]
    for name, task in job.pipeline.tasks.items():
        if message := _same_file(task):
            problems.append(job.problem(f"pipeline.tasks.{name}.data: {message}", "pipeline", "tasks", name, "data"))
    for path, prompt, completion in _templates(job):
        if message := given_away(prompt, completion):
            problems.append(job.problem(f"{'.'.join(path)}.prompt: {message}", *path, "prompt"))
    if problems:
        raise DataError(problems)


def _templates(job: Job) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The prompt and completion of every task and every guard that has them, with where they stand in the config."""
    for name, task in job.pipeline.tasks.items():
        yield ("pipeline", "tasks", name), task.prompt, task.completion
    guards = job.pipeline.forgetting.guards
    for name, guard in guards.items() if isinstance(guards, dict) else ():
        if guard.prompt and guard.completion:
            yield ("pipeline", "forgetting", "guards", name), guard.prompt, guard.completion


def given_away(prompt: str, completion: str) -> str | None:
    """What is wrong where every column of the completion stands in the prompt too, so that the answer can be read there."""
    answer = list(dict.fromkeys(template_columns(completion)))
    if not set(answer) <= set(template_columns(prompt)):
        return None
    named = " and ".join(f"{{{name}}}" for name in answer)
    return f"it holds the answer, {named}, which the completion is made of; take {named} out of the prompt"


def _same_file(task: Task) -> str | None:
    if isinstance(task.data, str):
        return None
    seen: dict[Path, str] = {}
    for split in SPLITS:
        file = getattr(task.data, split)
        if file is None:
            continue
        if (first := seen.setdefault(Path(file).resolve(), split)) != split:
            both = f"{first} and {split} are the same file, {file!r}, so the model would be tested on rows that it has seen"
            return f"{both}; name another file, or write data: {file} to split its rows"
    return None


def load_task(name: str, task: Task, pipeline: Pipeline) -> Iterator[Example]:
    """The examples of one task, each with its split; at the end DataError for the rows that gave none."""
    mistakes = Mistakes(f"task {name}: ")
    found: Counter[str] = Counter()
    system = task.system if task.system is not None else pipeline.system
    for file, row, fields, split in _rows_with_split(task, pipeline):
        try:
            if split not in SPLITS:
                raise DataError(split)
            check_system(system, fields)
            prompt, completion = filled(task.prompt, fields, "prompt"), filled(task.completion, fields, "completion")
            if split == "test":
                _check_scored(task, fields)
        except DataError as error:
            mistakes.add(file, row, str(error))
            continue
        found[split] += 1
        kept = {key: value for key, value in fields.items() if key != SPLIT_COLUMN}
        yield Example(name, split, row, file, system, prompt, completion, kept)
    mistakes.refuse()
    for split in ("train", "test"):
        if not found[split]:
            file = task.data if isinstance(task.data, str) else task.data.train
            raise DataError(Problem(f"task {name}: {_no_row(task, pipeline, split, found)}", file))


def _check_scored(task: Task, fields: Mapping[str, Any]) -> None:
    """Raises DataError where a test row lacks a column, named by no template, that its score depends on."""
    group = task.group
    if group is not None:
        if group not in fields:
            raise DataError(f"group names the column {group}, {row_has(fields, group)}")
        if not isinstance(fields[group], str | int | float) or not str(fields[group]).strip():
            found = (
                "no value"
                if fields[group] is None or isinstance(fields[group], str)
                else "a value that is no text or number"
            )
            raise DataError(f"group names the column {group}, which has {found} here; every test row needs one")
    if task.metric == "unit_tests":
        row_tests(fields)


def _no_row(task: Task, pipeline: Pipeline, split: str, found: Counter[str]) -> str:
    """What to do about a split without rows."""
    none = f"no row is left for the {split} split (it has {found.total()} in all)"
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


# --- mixing ------------------------------------------------------------------------------------------


def task_shares(
    counts: Mapping[str, int], weights: Mapping[str, float], mix: str, temperature: float
) -> dict[str, float]:
    """The share of an epoch's rows that each task gets; the shares add up to 1.

    proportional: by its rows; equal: the same for each; temperature: rows^(1/T), between the two
    (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", 3.5.2). Each is multiplied by `weights`.
    """
    exponent = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[mix]
    raw = {task: weights[task] * count**exponent for task, count in counts.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


def epoch_order(tasks: Sequence[str], shares: Mapping[str, float], seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The row numbers of one epoch, as many as there are rows, each task by its share.

    A task with a larger share than it has rows repeats them (every row once before any comes twice);
    one with a smaller share leaves some out, others in each epoch. With proportional shares every row comes once.
    """
    import numpy as np

    named = np.asarray(tasks)
    members = {task: np.flatnonzero(named == task) for task in dict.fromkeys(tasks)}
    quotas = _quotas({task: shares[task] * len(tasks) for task in members})
    order: list[np.ndarray] = []
    for task, rows in members.items():
        drawn = range(epoch * quotas[task], (epoch + 1) * quotas[task])
        for lap in range(drawn.start // len(rows), math.ceil(drawn.stop / len(rows))):
            whole = _shuffled(rows, f"{seed}/{task}/{lap}") if shuffle else rows
            order.append(whole[max(0, drawn.start - lap * len(rows)) : drawn.stop - lap * len(rows)])
    together = np.concatenate(order)
    ordered = _shuffled(together, f"{seed}/{epoch}") if shuffle else np.sort(together)
    return list(ordered.tolist())


def _shuffled(rows: np.ndarray, key: str) -> np.ndarray:
    import numpy as np

    return np.random.Generator(np.random.PCG64(list(key.encode()))).permutation(rows)


def _quotas(exact: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers with the same sum, the largest remainders rounded up."""
    quotas = {task: math.floor(value) for task, value in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for task in sorted(exact, key=lambda task: quotas[task] - exact[task])[:missing]:
        quotas[task] += 1
    return quotas
