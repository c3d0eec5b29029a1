"""What the page of `alfine serve` knows about the run: its tasks as forms, its test rows, and the next row to rate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.config.jinja_templates import jinja_template
from pipelines.config.job import Job
from pipelines.config.task import Task
from pipelines.data.conversation import Message
from pipelines.data.row_formats import fill_row
from pipelines.data.templates import system_columns, template_columns
from pipelines.errors import DataError, RunError
from pipelines.storage.records import CompletionRecord, SamplePromptRecord, prompts_for_reasoning, read_records
from pipelines.storage.run_folder import Run

MODELS = ("base", "tuned")
"""The names of the two models in requests."""

type RowKey = tuple[str, int, int | None]
"""A test row: its task, its line in the data file, and the number of the answer if the row has several."""


@dataclass(frozen=True)
class TestRow:
    """A test row with the stored completions of both models."""

    __test__ = False  # not a test of pytest

    task: str
    row: int
    answer: int | None
    base: CompletionRecord
    tuned: CompletionRecord

    @property
    def key(self) -> RowKey:
        return (self.task, self.row, self.answer)


class PageRun:
    """A run as the page shows it. Files are read when they are needed first."""

    def __init__(self, run: Run, job: Job) -> None:
        self.run = run
        self.job = job

    def description(self) -> dict[str, Any]:
        """The run, its tasks and the settings of new completions, as JSON."""
        rows = Counter(row.task for row in self.test_rows)
        return {
            "name": self.run.name,
            "base_model": self.job.base_model,
            "models": list(MODELS),
            "temperature": self._temperature,
            "free": {
                "system": self.job.system_prompt(),
                "max_tokens": self._max_tokens(None),
                "rows": len(self.sample_prompts),
            },
            "tasks": [self._task(name, task, rows[name]) for name, task in self.job.pipeline.tasks.items()],
        }

    def _columns_of_rows(self, task: str) -> Set[str]:
        row = next((row for row in self.test_rows if row.task == task), None)
        return set() if row is None else set(row.base.fields)

    @property
    def _temperature(self) -> float:
        generation = self.job.generation
        return float(generation.get("temperature") or 1.0) if generation.get("do_sample") else 0.0

    def _max_tokens(self, task: str | None) -> int:
        with_reasoning = prompts_for_reasoning(self.run.manifest, task)
        return self.job.completion_limit(task, with_reasoning=with_reasoning)

    def _task(self, name: str, task: Task, num_rows: int) -> dict[str, Any]:
        return {
            "name": name,
            "prompt": task.prompt,
            "messages": task.messages,
            "columns": form_columns(task, self.job.system_prompt(name), self._columns_of_rows(name)),
            "system": self.job.system_prompt(name),
            "max_tokens": self._max_tokens(name),
            "rows": num_rows,
            "is_code": task.metric == "unit_tests",
        }

    @cached_property
    def test_rows(self) -> list[TestRow]:
        """The test rows in the order of the run. None for a run whose evaluation is not complete."""
        base, tuned = (self._read(model, "completions.jsonl", CompletionRecord) for model in MODELS)
        key = [(record.task, record.row, record.prompt) for record in base]
        if key != [(record.task, record.row, record.prompt) for record in tuned]:
            return []
        totals = Counter((record.task, record.row) for record in base)
        seen: Counter[tuple[str, int]] = Counter()
        rows = []
        for of_base, of_tuned in zip(base, tuned, strict=True):
            place = (of_base.task, of_base.row)
            seen[place] += 1
            answer = seen[place] if totals[place] > 1 else None
            rows.append(TestRow(*place, answer, of_base, of_tuned))
        return rows

    @cached_property
    def sample_prompts(self) -> list[SamplePromptRecord]:
        """The sample prompts of the report."""
        return self._read("tuned", "sample_prompts.jsonl", SamplePromptRecord)

    def _read[R: (CompletionRecord, SamplePromptRecord)](self, model: str, file: str, record_type: type[R]) -> list[R]:
        path = self.run.path(model, file)
        if not path.is_file():
            return []
        try:
            return read_records(path, record_type)
        except ValueError:
            raise RunError(f"{path} is damaged; run `alfine report {self.run.folder}` for the line") from None

    def row(self, task: str | None, index: int) -> dict[str, Any] | None:
        """The test row `index` (from 0) of a task, or a sample prompt, as JSON; None if there is none."""
        if task is None:
            prompts = self.sample_prompts[index : index + 1] if index >= 0 else []
            return {"row": None, "prompt": prompts[0].prompt, "title": prompts[0].title} if prompts else None
        rows = [row for row in self.test_rows if row.task == task][index : index + 1] if index >= 0 else []
        if not rows:
            return None
        record = rows[0].base
        return {
            "row": rows[0].row,
            "answer": rows[0].answer,
            "fields": record.fields,
            "prompt": record.prompt,
            "reference": record.reference,
        }

    def rating_order(self) -> list[TestRow]:
        """The test rows in the order in which they are rated: random, and the same for all raters and restarts.

        So the first rows are a random sample of all, and the raters who stop early have rated the same ones.
        """
        rows = list(self.test_rows)
        random.Random(f"alfine votes {self.run.name}").shuffle(rows)
        return rows

    def next_rating(self, rated: Set[RowKey]) -> dict[str, Any]:
        """The next test row for a rater who has rated the rows `rated`, with its stored completions, as JSON."""
        order = self.rating_order()
        row = next((row for row in order if row.key not in rated), None)
        item = None if row is None else _rating_item(row)
        return {"item": item, "rated": sum(row.key in rated for row in order), "total": len(order)}

    def find_row(self, key: RowKey) -> TestRow | None:
        """The test row with this key."""
        return next((row for row in self.test_rows if row.key == key), None)

    def fill(self, name: str, fields: Mapping[str, Any]) -> list[Message]:
        """The turns of a row's prompt, as messages. Raises DataError if the task cannot use the row."""
        task = self.job.pipeline.tasks.get(name)
        if task is None:
            raise DataError(f"the run has no task {name!r:.80}; it has {', '.join(self.job.pipeline.tasks)}")
        (filled,) = fill_row(task, fields, self.job.system_prompt(name), needs_answer=False)
        if filled.turns is not None:
            return list(filled.turns.messages)
        system: list[Message] = [{"role": "system", "content": filled.system}] if filled.system else []
        return [*system, {"role": "user", "content": filled.prompt}]


def _rating_item(row: TestRow) -> dict[str, Any]:
    return {
        "task": row.task,
        "row": row.row,
        "answer": row.answer,
        "prompt": row.base.prompt,
        "reference": row.base.reference,
        "base": {"text": row.base.completion, "reasoning": row.base.reasoning},
        "tuned": {"text": row.tuned.completion, "reasoning": row.tuned.reasoning},
    }


def form_columns(task: Task, system: str | None, columns_of_rows: Set[str]) -> list[dict[str, Any]]:
    """The columns that the prompt of a task names: `name`, and whether a row must have it (`required`).

    A column of a conversation has `json`: its value is a list, not a text. The system turn names columns as well; its
    other braces, those that name none of `columns_of_rows`, are text.
    """
    required: list[str] = []
    optional: list[str] = []
    if task.template == "jinja":
        for template in (jinja_template(source) for source in (task.prompt, task.system) if source is not None):
            required += template.columns
            optional += template.optional_columns
    elif task.prompt is not None:
        required += template_columns(task.prompt)
    if system is not None and (task.template == "column" or task.system is None):
        optional += [name for name in system_columns(system) if name in columns_of_rows]
    lists = [name for name in (task.messages, task.history, task.tools) if name is not None]
    names = dict.fromkeys([*lists, *required, *optional])
    return [{"name": name, "required": name in required or name in lists, "json": name in lists} for name in names]
