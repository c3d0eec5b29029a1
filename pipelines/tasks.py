"""Rows in, examples out: read the task's file, fill its templates, split, and mix tasks into an epoch."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError, Problem

if TYPE_CHECKING:
    from pipelines.config import Pipeline, Task

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


def load_examples(pipeline: Pipeline) -> list[Example]:
    """Reads every task's rows, in the order of the YAML. Raises DataError with all problems found."""
    examples: list[Example] = []
    problems: list[Problem] = []
    for name, task in pipeline.tasks.items():
        try:
            examples.extend(load_task(name, task, pipeline))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)
    return examples


def load_task(name: str, task: Task, pipeline: Pipeline) -> list[Example]:
    """The examples of one task, each with its split."""
    examples: list[Example] = []
    wrong: dict[tuple[str, str], list[int]] = {}
    for file, split, row, fields in _rows_with_split(task, pipeline):
        try:
            examples.append(
                Example(
                    task=name,
                    split=split,
                    row=row,
                    file=file,
                    system=task.system if task.system is not None else pipeline.system,
                    prompt=fill(task.prompt, fields),
                    completion=fill(task.completion, fields),
                    fields={key: value for key, value in fields.items() if key != SPLIT_COLUMN},
                )
            )
        except DataError as error:
            wrong.setdefault((file, str(error)), []).append(row)
    if wrong:
        raise DataError(
            [
                Problem(f"task {name}: {message}" + (f" ({len(rows)} such rows)" if len(rows) > 1 else ""), file, rows[0])
                for (file, message), rows in wrong.items()
            ]
        )
    for split in ("train", "test"):
        if not any(example.split == split for example in examples):
            files = task.data if isinstance(task.data, str) else task.data.train
            raise DataError(
                Problem(
                    f"task {name}: no row is left for the {split} split ({len(examples)} rows in all); "
                    f"give it more rows, or a `split` column, or change pipeline.split",
                    files,
                )
            )
    return examples


def _rows_with_split(task: Task, pipeline: Pipeline) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    if not isinstance(task.data, str):
        for split in SPLITS:
            file = getattr(task.data, split)
            if file is not None:
                for row, fields in enumerate(read_rows(Path(file)), start=1):
                    yield file, split, row, fields
        return
    rows = read_rows(Path(task.data))
    if any(SPLIT_COLUMN in fields for fields in rows):
        splits = [_named_split(fields, task.data, row) for row, fields in enumerate(rows, start=1)]
    else:
        splits = random_splits(len(rows), pipeline.split.validation, pipeline.split.test)
    for row, (split, fields) in enumerate(zip(splits, rows, strict=True), start=1):
        yield task.data, split, row, fields


def _named_split(fields: Mapping[str, Any], file: str, row: int) -> str:
    split = fields.get(SPLIT_COLUMN)
    if split not in SPLITS:
        found = "has no split, though other rows have one" if split is None else f"split is {split!r}"
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


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Puts a row's columns into a template. Raises DataError for a missing column or an empty value."""
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name is None:
            continue
        if name not in fields:
            known = ", ".join(key for key in fields if key != SPLIT_COLUMN)
            raise DataError(f"the template names the column {{{name}}}, the row has: {known}")
        parts.append(_as_text(name, fields[name]))
    return "".join(parts)


def _as_text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"column {name} has no value")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


# --- files -------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .csv or .parquet file. Raises DataError with file and line."""
    suffix = path.suffix.lower()
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if suffix not in readers:
        raise DataError(Problem(f"files end in .jsonl, .csv or .parquet, not {suffix or 'nothing'!r}", str(path)))
    try:
        rows = readers[suffix](path)
    except FileNotFoundError:
        raise DataError(Problem("there is no such file", str(path))) from None
    except IsADirectoryError:
        raise DataError(Problem("is a folder; name a file", str(path))) from None
    except PermissionError:
        raise DataError(Problem("may not be read (permission denied)", str(path))) from None
    if not rows:
        raise DataError(Problem("has no rows", str(path)))
    return rows


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(Problem("is not UTF-8 here; save the file as UTF-8", str(path), line)) from None


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise DataError(Problem(f"is not JSON ({reason}); each line holds one object", str(path), number)) from None
        if not isinstance(row, dict):
            raise DataError(Problem("holds no object; write one {...} a line", str(path), number))
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    # Not pandas: it fills short rows with NaN and turns "001" or "NA" into something else without a word.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = next(reader, [])
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise DataError(Problem(f"two columns have the name {repeated[0]!r}", str(path), 1))
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    Problem(
                        f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas",
                        str(path),
                        reader.line_num,
                    )
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(Problem(f"is not CSV ({error})", str(path), reader.line_num)) from None
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        return list(pq.read_table(path).to_pylist())
    except (pa.ArrowException, OSError):
        raise DataError(Problem("is not a Parquet file, or not a whole one; write it again", str(path))) from None


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
    members: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        members.setdefault(task, []).append(row)
    quotas = _quotas({task: shares[task] * len(tasks) for task in members})
    order: list[int] = []
    for task, rows in members.items():
        laps: dict[int, list[int]] = {}
        for drawn in range(epoch * quotas[task], (epoch + 1) * quotas[task]):
            lap, position = divmod(drawn, len(rows))
            if lap not in laps:
                laps[lap] = _shuffled(rows, f"{seed}/{task}/{lap}") if shuffle else rows
            order.append(laps[lap][position])
    return _shuffled(order, f"{seed}/{epoch}") if shuffle else sorted(order)


def _shuffled(rows: list[int], key: str) -> list[int]:
    rows = list(rows)
    random.Random(key).shuffle(rows)
    return rows


def _quotas(exact: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers with the same sum, the largest remainders rounded up."""
    quotas = {task: math.floor(value) for task, value in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for task in sorted(exact, key=lambda task: quotas[task] - exact[task])[:missing]:
        quotas[task] += 1
    return quotas
