"""Rows in, examples out: fill the task's templates, split, and mix tasks into an epoch."""

from __future__ import annotations

import json
import math
import random
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError, Problem
from pipelines.forgetting_keys import HUB
from pipelines.row_files import read_rows, stream_rows
from pipelines.unit_tests import row_tests
from pipelines.yaml_wording import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from pipelines.config import Job, Pipeline, Task

SPLITS = ("train", "validation", "test")
SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Example:
    """One row of one task, with its templates filled.

    `row` counts the rows of `file` from 1; in JSON Lines that is the line. `fields` are the row's columns.
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
    """Raises DataError, with the config's lines, for each file of rows that is not there; reads none."""
    problems = [
        job.problem(f"{'.'.join(where)}: there is no file {file!r}; paths begin where alfine is started", *where)
        for where, file in named_files(job)
        if not Path(file).exists()
    ]
    if problems:
        raise DataError(problems)


def load_task(name: str, task: Task, pipeline: Pipeline) -> Iterator[Example]:
    """The examples of one task, each with its split; at the end DataError for the rows that gave none."""
    wrong: dict[tuple[str, str], list[int]] = {}
    found: Counter[str] = Counter()
    system = task.system if task.system is not None else pipeline.system
    for file, split, row, fields in _rows_with_split(task, pipeline):
        try:
            prompt, completion = _filled(task.prompt, fields, "prompt"), _filled(task.completion, fields, "completion")
            if task.metric == "unit_tests" and split == "test":
                row_tests(fields)
        except DataError as error:
            wrong.setdefault((file, str(error)), []).append(row)
            continue
        found[split] += 1
        kept = {key: value for key, value in fields.items() if key != SPLIT_COLUMN}
        yield Example(name, split, row, file, system, prompt, completion, kept)
    if wrong:
        raise DataError(
            [
                Problem(f"task {name}: {message}" + (f" ({len(rows)} such rows)" if len(rows) > 1 else ""), file, rows[0])
                for (file, message), rows in wrong.items()
            ]
        )
    for split in ("train", "test"):
        if not found[split]:
            files = task.data if isinstance(task.data, str) else task.data.train
            raise DataError(
                Problem(
                    f"task {name}: no row is left for the {split} split (it has {found.total()} in all); "
                    f"give it more rows, or a `split` column, or change pipeline.split",
                    files,
                )
            )


def _filled(template: str, fields: Mapping[str, Any], what: str) -> str:
    text = fill(template, fields)
    if not text.strip():
        raise DataError(f"the {what} is empty; give its column a value, or drop the row")
    return text


def _rows_with_split(task: Task, pipeline: Pipeline) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    if not isinstance(task.data, str):
        for split in SPLITS:
            file = getattr(task.data, split)
            if file is not None:
                for row, fields in enumerate(stream_rows(Path(file)), start=1):
                    yield file, split, row, fields
        return
    # Read twice rather than held: whether any row names its split is known behind the last one.
    count, named = 0, 0
    for count, fields in enumerate(stream_rows(Path(task.data)), start=1):
        named = named or (SPLIT_COLUMN in fields and count)
    splits = [] if named else random_splits(count, pipeline.split.validation, pipeline.split.test)
    for row, fields in enumerate(stream_rows(Path(task.data)), start=1):
        if row > count:
            raise DataError(Problem("has grown while it was read; start again when it is complete", task.data, row))
        yield task.data, _named_split(fields, task.data, row, named) if named else splits[row - 1], row, fields


def _named_split(fields: Mapping[str, Any], file: str, row: int, first: int) -> str:
    """`first`: a row that names its split."""
    split = fields.get(SPLIT_COLUMN)
    if split not in SPLITS:
        found = f"has no split, though row {first} has one" if split is None else f"split is {split!r}"
        raise DataError(Problem(f"{found}; write one of train, validation, test", file, row))
    return str(split)


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


# --- templates ---------------------------------------------------------------------------------------


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order. `{{` and `}}` stand for literal braces."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


@lru_cache(maxsize=256)
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Puts a row's columns into a template. Raises DataError for a missing column or an empty value."""
    parts: list[str] = []
    for literal, name in _parsed(template):
        parts.append(literal)
        if name is None:
            continue
        if name not in fields:
            known = ", ".join(key for key in fields if key != SPLIT_COLUMN)
            near = did_you_mean(name, fields)
            advice = f"; did you mean {{{near}}}?" if near else ""
            raise DataError(f"the template names the column {{{name}}}, the row has: {known}{advice}")
        parts.append(_as_text(name, fields[name]))
    return "".join(parts)


def _as_text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        found = "has no value" if value is None else "is NaN, as pandas writes an empty cell"
        raise DataError(f"column {name} {found}; give it a text, or drop the row")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


# --- mixing ------------------------------------------------------------------------------------------


def task_shares(counts: Mapping[str, int], weights: Mapping[str, float], mix: str, temperature: float) -> dict[str, float]:
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


def read_probes(path: Path) -> list[dict[str, Any]]:
    """Free prompts: rows with `prompt` and, if wished, `title` and `max_new_tokens`."""
    probes = read_rows(path)
    for number, probe in enumerate(probes, start=1):
        if not isinstance(probe.get("prompt"), str) or not probe["prompt"].strip():
            raise DataError(Problem("a probe needs a text in `prompt`", str(path), number))
        unknown = set(probe) - {"prompt", "title", "max_new_tokens"}
        if unknown:
            raise DataError(
                Problem(f"unknown key {sorted(unknown)[0]!r}; a probe has prompt, title, max_new_tokens", str(path), number)
            )
    return probes
