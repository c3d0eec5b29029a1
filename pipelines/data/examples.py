"""Examples: the rows of a job's tasks with their templates filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipelines.data.conversation import Conversation
from pipelines.data.drawn_rows import describe_drawn
from pipelines.data.format_detection import resolve_format
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.row_formats import as_test_rows, fill_row, used_columns
from pipelines.data.sources import SPLITS, DataSource, open_source
from pipelines.data.splits import SplitRow, read_split_rows
from pipelines.data.templates import (
    SPLIT_COLUMN,
    describe_columns,
    fill_reasoning,
)
from pipelines.errors import DataError, Problem
from pipelines.scoring.metric import METRICS, check_row
from pipelines.storage.records import DrawnRows

if TYPE_CHECKING:
    from pipelines.config.pipeline import PipelineSettings, Task


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row with its templates filled: the unit that is trained on, evaluated or predicted.

    Every consumer of rows uses this type:

    - `load_examples` yields the rows of a job's tasks. They have a completion and a split.
    - A prompt without a known answer (`alfine predict`, a sample prompt) has `completion=None`. One that belongs to no
      task has `task=""`.
    - A row of a retention eval of kind task has the eval's name as its `task`.

    `tokenize_rows.tokenize_examples` turns examples into `TokenizedExample`s, with or without a completion.

    Attributes:
        prompt: the user turn, before any chat template.
        completion: the reference, or None if there is none.
        system: the system turn, or None.
        file, row_number: the source of the row: its first line in `file`, or in a Parquet file its index from 1.
        fields: the columns of the row, without the split column.
        max_new_tokens: the limit of the completion; None for that of its task or job.
        title: the name of a sample prompt in the report.
        reasoning: the thought before the completion; None if the model is not to write one, "" if it is to write one
            that is not known.
        turns: the conversation of a row that has more than one prompt and one completion. `prompt` and `completion`
            are then its text before the evaluated turn, for display, and the content of that turn.
        turn: the index of the evaluated turn in the row's messages, None if the row is one prompt and one completion.
        template_kwargs: variables of the chat template of the row's task, over those of the prompt format.
        rank: the rank of a training row among those that may become examples in a prompt; None for all others.
    """

    prompt: str
    completion: str | None = None
    system: str | None = None
    task: str = ""
    split: str = "test"
    file: str
    row_number: int
    fields: Mapping[str, Any]
    max_new_tokens: int | None = None
    title: str | None = None
    reasoning: str | None = None
    turns: Conversation | None = None
    turn: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None

    @property
    def conversation(self) -> Conversation:
        """What the chat template renders: `turns`, or the prompt, the system turn and the completion."""
        if self.turns is not None:
            return self.turns
        return Conversation.single_turn(self.prompt, self.completion, self.system, self.reasoning, self.template_kwargs)

    @property
    def source_location(self) -> str:
        return f"{self.file}:{self.row_number}"

    @property
    def reference(self) -> str:
        """The completion of an example that must have one. Raises ValueError if it has none."""
        if self.completion is None:
            raise ValueError(f"{self.source_location} has no completion")
        return self.completion


@dataclass
class HeldOutRows:
    """Counts the rows per (task, split) that were read: those that are used, and those of the validation and test
    split that were not drawn, see `report.test_rows`."""

    used: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    skipped: int = 0
    """Used rows that did not become examples, see `load_examples`."""

    def total(self, split: str) -> int:
        """The used rows of a split of all tasks."""
        return sum(count for (_, used_split), count in self.used.items() if used_split == split)

    def drawn(self, task: str) -> dict[str, DrawnRows]:
        """The splits of a task of which not all rows are evaluated."""
        return {
            split: DrawnRows(rows=self.used[task, split], of=self.used[task, split] + count)
            for split in SPLITS
            if (count := self.left_out[task, split])
        }

    def notes(self, pipeline: PipelineSettings) -> list[str]:
        """What was drawn, as sentences without a full stop."""
        notes = []
        for name, task in pipeline.tasks.items():
            metric, clustered = METRICS.get(task.metric), task.cluster_by is not None
            for split, drawn in self.drawn(name).items():
                notes.append(f"task {name}: {describe_drawn(split, drawn, metric, clustered=clustered)}")
        return notes


def load_examples(
    pipeline: PipelineSettings, rows: HeldOutRows | None = None, first: int | None = None
) -> Iterator[Example]:
    """Yields the examples of every task as they are read, in the order of the config.

    rows: counts the rows.
    first: only the first so many rows of each split become examples, and those that may become examples in a prompt;
        the others are counted. None: all do.
    Raises DataError after the last example, with the problems of all tasks.
    """
    problems: list[Problem] = []
    for name, task in pipeline.tasks.items():
        try:
            yield from _load_task(name, task, pipeline, HeldOutRows() if rows is None else rows, first)
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)


def _load_task(
    name: str, task: Task, pipeline: PipelineSettings, rows: HeldOutRows, first: int | None
) -> Iterator[Example]:
    """Yields the examples of one task, and counts its rows in `rows`; `first` as in `load_examples`.

    Raises DataError after the last one, for rows that cannot be used.
    """
    errors = RowErrors(f"task {name}: ")
    counts: Counter[str] = Counter()
    task, _ = resolve_format(name, task)

    seen: Counter[str] = Counter()

    def is_wanted(split: str, drawn: bool, rank: int | None) -> bool:
        if not drawn:
            rows.left_out[name, split] += 1
            return False
        seen[split] += 1
        if first is None or rank is not None or seen[split] <= first:
            return True
        counts[split] += 1
        rows.used[name, split] += 1
        rows.skipped += 1
        return False

    for row in read_split_rows(task, pipeline, is_wanted):
        try:
            examples = fill_examples(name, task, pipeline, row)
        except DataError as error:
            errors.add(row.file, row.row_number, str(error))
            continue
        counts[examples[0].split] += 1
        rows.used[name, examples[0].split] += 1
        yield from examples
    errors.raise_if_any()
    for split in ("train", "test"):
        if not counts[split]:
            source = open_source(task.data)
            message = _empty_split(source, pipeline, split, counts)
            raise DataError(Problem(f"task {name}: {message}", source.files[0].name))


def fill_examples(name: str, task: Task, pipeline: PipelineSettings, row: SplitRow) -> list[Example]:
    """Raises DataError, without a location, for a row without a split or with columns that the task cannot use."""
    if row.split is None:
        raise DataError(row.error)
    filled = fill_row(task, row.fields, pipeline.system_prompt(name))
    if row.split == "test":
        _check_scoring_columns(task, row.fields)
        filled = list(as_test_rows(filled))
    else:
        filled = filled[-1:]  # all supervised turns of a conversation are trained together
    fields = {column: value for column, value in row.fields.items() if column != SPLIT_COLUMN}
    template_kwargs = {**pipeline.chat_template_kwargs, **task.chat_template_kwargs}
    reasoning = fill_reasoning(task.reasoning, row.fields, used_columns(task))
    return [
        Example(
            task=name,
            split=row.split,
            file=row.file,
            row_number=row.row_number,
            system=part.system,
            prompt=part.prompt,
            completion=part.completion,
            fields=fields,
            template_kwargs=template_kwargs,
            reasoning=reasoning if part.turns is None else None,
            turns=None if part.turns is None else replace(part.turns, template_kwargs=template_kwargs),
            turn=part.turn,
            rank=row.rank,
        )
        for part in filled
    ]


def _check_scoring_columns(task: Task, fields: Mapping[str, Any]) -> None:
    """Raises DataError if a test row lacks a column that its score depends on and no template names."""
    cluster_by = task.cluster_by
    if cluster_by is not None:
        if cluster_by not in fields:
            raise DataError(f"cluster_by names the column {cluster_by}, but {describe_columns(fields, cluster_by)}")
        value = fields[cluster_by]
        if not isinstance(value, str | int | float) or not str(value).strip():
            is_missing = value is None or isinstance(value, str)
            described = "no value" if is_missing else "a value that is no text or number"
            raise DataError(
                f"cluster_by names the column {cluster_by}, which has {described} here; every test row needs one"
            )
    check_row(task.metric, fields)


def _empty_split(source: DataSource, pipeline: PipelineSettings, split: str, counts: Counter[str]) -> str:
    """A message on a split without rows, with what to do about it."""
    rows = "1 row" if counts.total() == 1 else f"{counts.total():,} rows"
    problem = f"the {split} split is empty ({rows} in all)"
    if source.has_splits and source.of_split(split):
        return problem
    first_rows = islice(numbered_rows(source.files[0].path), 1)
    if not source.has_splits and any(SPLIT_COLUMN in fields for _, fields in first_rows):
        return f"{problem}; write {split} in the column `split` of some rows, or remove the column for a random split"
    if split == "test" and not pipeline.split.test:
        return f"{problem} because pipeline.split.test is 0; write test: 0.1"
    return f"{problem}; add rows, or a `split` column, or change pipeline.split"
