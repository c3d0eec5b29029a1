"""What a job will process: rows, tokens and steps, from a sample of its rows.

The sample is drawn in one pass over each file. Lengths are means over the sample, so they are estimates for files with
more rows; numbers of rows are exact, except where a column `split` of a large file decides.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from pipelines.config.job import Job
from pipelines.config.lr_schedules import StepCounts, effective_batch_size
from pipelines.config.pipeline import PipelineSettings, Task, TooLong
from pipelines.data.examples import fill_examples
from pipelines.data.format_detection import resolve_format
from pipelines.data.mixing import mixing_weights
from pipelines.data.sources import SPLITS, open_source
from pipelines.data.splits import SplitRow
from pipelines.data.templates import SPLIT_COLUMN
from pipelines.errors import DataError, Problem
from pipelines.modeling.prefix_tree import build_prefix_tree
from pipelines.planning.row_sample import RowSample, sample_rows
from pipelines.planning.token_lengths import ExampleTokens, TokenCounter

SAMPLE_ROWS = 1500
"""Rows whose tokens are counted, of all tasks together: about half a second."""
MAX_DRAWN_ROWS = 20_000
"""Rows that are drawn to find a large micro-batch. The largest of a longer training is hardly larger."""
PREFILL_TOKENS = 4096
"""Tokens of a pass over prompts, see `evaluation.generation.prefill_batches`."""


@dataclass(frozen=True)
class TaskWorkload:
    """The rows and the mean lengths, in tokens, of one task.

    Attributes:
        rows: the number of rows by split.
        evaluated: those of the test and validation splits that are evaluated, see `report.test_rows`.
        tokens, supervised, prompt: means per row; the completion of a test row is `tokens - prompt`.
        limit: the most tokens of a completion.
        longest: the tokens of the longest row that was found.
        is_sampled: whether the means are those of a sample.
        skipped: rows of the sample that cannot be used; `check` says why.
    """

    name: str
    rows: dict[str, int]
    evaluated: dict[str, int]
    tokens: float
    supervised: float
    prompt: float
    limit: int
    longest: int
    is_sampled: bool
    skipped: int = 0


@dataclass(frozen=True)
class Workload:
    """The work of a job.

    Attributes:
        steps: optimizer steps.
        rows_per_step: rows of a step.
        step_tokens: the mean number of tokens of a step that are computed: shared prefixes once.
        mean_length: the mean tokens of a training row.
        micro_batch_tokens: the largest number of computed tokens of one micro-batch; None if its size is measured.
        micro_batch_supervised: the supervised tokens of that micro-batch.
        sharing: computed tokens of prompts divided by all tokens of prompts, in a pass over prompts.
    """

    tasks: list[TaskWorkload]
    steps: StepCounts
    rows_per_step: int
    step_tokens: float
    mean_length: float
    longest: int
    micro_batch_tokens: int | None
    micro_batch_supervised: int
    sharing: float
    counts_tokens: bool

    def total(self, split: str) -> int:
        """The rows of a split, of all tasks."""
        return sum(task.rows[split] for task in self.tasks)

    @property
    def num_test_rows(self) -> int:
        """The test rows that both models answer."""
        return sum(task.evaluated["test"] for task in self.tasks)

    @property
    def train_tokens(self) -> float:
        """The tokens of all steps, before prefixes are shared."""
        return self.mean_length * self.rows_per_step * self.steps.total

    @property
    def supervised_tokens(self) -> float:
        """The supervised tokens of all steps."""
        train = self.total("train") or 1
        mean = sum(task.supervised * task.rows["train"] for task in self.tasks) / train
        return mean * self.rows_per_step * self.steps.total


@dataclass(frozen=True)
class TaskSample:
    """The rows of a task by split, and the tokens of the sampled rows and of the longest ones.

    `is_complete` is whether every row was counted, `skipped` the sampled rows that cannot be used.
    """

    rows: dict[str, int]
    tokens: list[ExampleTokens]
    longest: list[ExampleTokens]
    is_complete: bool
    skipped: int


def sample_tasks(job: Job, counter: TokenCounter, size: int = SAMPLE_ROWS) -> dict[str, TaskSample]:
    """Samples the rows of every task. Raises DataError for files that cannot be read or have no usable row."""
    tasks = job.pipeline.tasks
    return {name: _sample_task(name, task, job, counter, max(size // len(tasks), 50)) for name, task in tasks.items()}


def measure_workload(
    job: Job, samples: dict[str, TaskSample], counts_tokens: bool, context_length: int = sys.maxsize
) -> Workload:
    """The work of a job whose rows are sampled. `counts_tokens` is whether the lengths are in the model's tokens.

    context_length: the most tokens of a row that the model can attend to.
    """
    limit = row_limit(job, context_length)
    pipeline = job.pipeline
    fitting = {name: _within_limit(sample.tokens, job.too_long(name), limit) for name, sample in samples.items()}
    longest_rows = {name: _longest_within_limit(sample, job.too_long(name), limit) for name, sample in samples.items()}
    longest = [tokens for rows in longest_rows.values() for tokens in rows]
    tasks = [
        TaskWorkload(
            name,
            samples[name].rows,
            _evaluated(job, name, samples[name].rows),
            tokens=fmean(len(row.ids) for row in rows),
            supervised=fmean(row.supervised for row in rows),
            prompt=fmean(row.prompt for row in rows),
            limit=job.completion_limit(name, with_reasoning=False),
            longest=max(len(row.ids) for row in [*rows, *longest_rows[name]]),
            is_sampled=not samples[name].is_complete,
            skipped=samples[name].skipped,
        )
        for name, rows in fitting.items()
    ]
    counts = {task.name: task.rows["train"] for task in tasks}
    steps = StepCounts.from_trainer(job.trainer, sum(counts.values()))
    rows_per_step = min(effective_batch_size(job.trainer), max(sum(counts.values()), 1))
    weights = {name: task.weight for name, task in pipeline.tasks.items()}
    shares = mixing_weights(counts, weights, pipeline.mix, pipeline.temperature)
    pool = _pool(fitting, shares, pipeline.seed)
    micro_rows = None if job.trainer["batch_size"] == "auto" else int(job.trainer["batch_size"])
    longest_row = max(len(tokens.ids) for tokens in [*longest, *pool])
    micro_batches = _micro_batches(pool, min(micro_rows or 1, rows_per_step), steps.total * rows_per_step)
    largest = max(micro_batches, key=lambda batch: sum(len(tokens.ids) for tokens in batch))
    prompts = [tokens.ids[: tokens.prompt] for rows in fitting.values() for tokens in rows]
    return Workload(
        tasks,
        steps,
        rows_per_step,
        fmean(_computed(batch) for batch in _batches(pool, rows_per_step)),
        fmean(len(tokens.ids) for tokens in pool),
        longest_row,
        None if micro_rows is None else max(_computed([tokens.ids for tokens in largest]), longest_row),
        sum(tokens.supervised for tokens in largest),
        _prompt_sharing(prompts),
        counts_tokens,
    )


def _sample_task(name: str, task: Task, job: Job, counter: TokenCounter, size: int) -> TaskSample:
    pipeline = job.pipeline
    task, _ = resolve_format(name, task)
    files = open_source(task.data).files
    samples = [(file, sample_rows(file.path, max(size // len(files), 1), pipeline.seed)) for file in files]
    rows = _rows_by_split([(file.split, sample) for file, sample in samples], pipeline)
    tokens, longest, skipped, first_error = list[ExampleTokens](), list[ExampleTokens](), 0, ""
    for file, sample in samples:
        for numbered, target in ((sample.rows, tokens), (sample.longest, longest)):
            conversations = []
            for number, fields in numbered:
                row = SplitRow(file.name, number, fields, "train")
                try:
                    conversations.append(fill_examples(name, task, pipeline, row)[0].conversation)
                except DataError as error:
                    skipped += target is tokens
                    first_error = first_error or f"{file.name}:{number}: {error}"
            target += counter.count(conversations)
    if not tokens:
        raise DataError(Problem(f"task {name}: no row can be used ({first_error})", files[0].name))
    return TaskSample(rows, tokens, longest, all(sample.is_complete for _, sample in samples), skipped)


def _evaluated(job: Job, name: str, rows: dict[str, int]) -> dict[str, int]:
    limits = {split: job.pipeline.row_limit(job.pipeline.tasks[name], split) for split in SPLITS[1:]}
    return {split: rows[split] if limit is None else min(rows[split], limit) for split, limit in limits.items()}


def row_limit(job: Job, context_length: int) -> int:
    """The most tokens of a row."""
    return min(job.max_sequence_length or context_length, context_length)


def too_long_shares(job: Job, samples: dict[str, TaskSample], context_length: int) -> dict[str, float]:
    """The share of each task's sampled rows that are longer than the limit and not shortened."""
    limit = row_limit(job, context_length)
    return {
        name: sum(len(row.ids) > limit for row in sample.tokens) / len(sample.tokens)
        if job.too_long(name) != "truncate_prompt"
        else 0.0
        for name, sample in samples.items()
    }


def _within_limit(tokens: list[ExampleTokens], too_long: TooLong, limit: int) -> list[ExampleTokens]:
    """The rows that are at most as long as the limit; the shortest one if none is. Prompts are shortened if the config
    says so."""
    if too_long == "truncate_prompt":
        return [_shortened(row, limit) for row in tokens]
    return [row for row in tokens if len(row.ids) <= limit] or sorted(tokens, key=lambda row: len(row.ids))[:1]


def _longest_within_limit(sample: TaskSample, too_long: TooLong, limit: int) -> list[ExampleTokens]:
    """The longest rows that are used. If the sample has none of them, one that is as long as the limit."""
    if too_long == "truncate_prompt":
        return [_shortened(row, limit) for row in sample.longest]
    rows = [row for row in sample.longest if len(row.ids) <= limit]
    if not rows and sample.longest and not sample.is_complete:
        rows = [_shortened(sample.longest[0], limit)]
    return rows


def _shortened(row: ExampleTokens, limit: int) -> ExampleTokens:
    excess = len(row.ids) - limit
    return row if excess <= 0 else replace(row, ids=row.ids[:limit], prompt=max(row.prompt - excess, 1))


def _rows_by_split(samples: Sequence[tuple[str | None, RowSample]], pipeline: PipelineSettings) -> dict[str, int]:
    """The number of rows by split, as `data.splits` assigns them; by the proportions of the sample if a column does."""
    rows, undecided = dict.fromkeys(SPLITS, 0), 0
    fractions = {"validation": pipeline.split.validation, "test": pipeline.split.test}
    for split, sample in samples:
        named = Counter(fields.get(SPLIT_COLUMN) for _, fields in sample.rows)
        if split is not None:
            rows[split] += sample.count
        elif any(named[name] for name in SPLITS):
            for name in SPLITS:
                rows[name] += round(sample.count * named[name] / len(sample.rows))
            fractions = {}
        else:
            undecided += sample.count
    drawn = undecided or rows["train"]
    missing = {name: round(drawn * fraction) for name, fraction in fractions.items() if not rows[name]}
    return rows | missing | {"train": drawn - sum(missing.values())}


def _pool(samples: dict[str, list[ExampleTokens]], shares: dict[str, float], seed: int) -> list[ExampleTokens]:
    """Rows of the tasks' samples in the proportions of an epoch, shuffled. A task with few rows repeats them."""
    generator = np.random.default_rng(seed)
    size = sum(map(len, samples.values()))
    pool: list[ExampleTokens] = []
    for name, rows in samples.items():
        order = generator.permutation(len(rows))
        pool += [rows[order[index % len(rows)]] for index in range(max(round(size * shares[name]), 1))]
    return [pool[index] for index in generator.permutation(len(pool))]


def _micro_batches(pool: list[ExampleTokens], rows: int, num_rows: int) -> list[list[ExampleTokens]]:
    """Micro-batches of `rows` rows as a training of `num_rows` rows draws them, at most of MAX_DRAWN_ROWS rows."""
    generator = np.random.default_rng(0)
    drawn: list[ExampleTokens] = []
    while len(drawn) < min(max(num_rows, rows), MAX_DRAWN_ROWS):
        drawn += [pool[index] for index in generator.permutation(len(pool))]
    drawn = drawn[: max(min(num_rows, MAX_DRAWN_ROWS), rows)]
    return [drawn[start : start + rows] for start in range(0, len(drawn), rows)]


def _batches(pool: Sequence[ExampleTokens], rows: int) -> list[list[Sequence[int]]]:
    rows = min(rows, len(pool))
    batches = [[tokens.ids for tokens in pool[start : start + rows]] for start in range(0, len(pool), rows)]
    return [batch for batch in batches if len(batch) == rows][:50]


def _computed(batch: Sequence[Sequence[int]]) -> int:
    """The tokens of a batch with shared prefixes counted once."""
    return sum(build_prefix_tree([np.asarray(ids, dtype=np.int32) for ids in batch]).lengths)


def _prompt_sharing(prompts: Sequence[Sequence[int]]) -> float:
    batch: list[Sequence[int]] = []
    for prompt in sorted(prompts, key=len):
        if sum(map(len, batch)) + len(prompt) > PREFILL_TOKENS:
            break
        batch.append(prompt)
    return _computed(batch) / max(sum(map(len, batch)), 1) if batch else 1.0
