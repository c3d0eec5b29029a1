"""The comparison of an export's answers with those of its run: token by token, and score by score."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.exporting.records import TaskCheck
from pipelines.scoring.metric import Metric
from pipelines.scoring.statistics import compare
from pipelines.storage.records import CompletionRecord
from pipelines.storage.strict_json import dump

TIE_NATS = 1e-3
"""Two tokens whose log-probabilities differ by less are as likely up to the rounding of fp32: which of them is chosen
depends on the order of additions. Between two engines in fp32, log-probabilities differ by about 1e-4."""
MARGIN = 2.0
"""Points that a score may decline: a check fails if the whole 95 % interval is below."""
NLL_MARGIN = 0.05
"""The same for a loss, in nats per token."""
MIN_TOKEN_AGREEMENT = 50.0
"""Percent of the run's tokens that are the export's choice too. Quantization to 8 bits leaves about 98 %, to 4 bits
about 85 to 95 %; another model, or a wrong weight, chooses few of them."""


def is_same_answer(one: CompletionRecord, other: CompletionRecord) -> bool:
    """Whether text, thought, number of tokens and reason of the end are equal."""
    keys = ("completion", "reasoning", "num_generated_tokens", "finish_reason")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


@dataclass(frozen=True)
class Answer:
    """An answer of the export next to the run's.

    Attributes:
        run: the record of the run.
        export: the same record with the export's answer.
        run_tokens: the tokens of the run's answer, the stop token included.
        export_tokens: those of the export's.
        own, best: the export's log-probability of each of the run's tokens after the run's tokens before it, and of the
            most likely token in its place, in nats.
        choices: that most likely token.
    """

    run: CompletionRecord
    export: CompletionRecord
    run_tokens: Sequence[int]
    export_tokens: Sequence[int]
    own: Sequence[float]
    best: Sequence[float]
    choices: Sequence[int]

    @property
    def is_equal(self) -> bool:
        return is_same_answer(self.run, self.export)

    @property
    def first_difference(self) -> int | None:
        """The index of the first token that differs; None for an equal answer."""
        if self.is_equal:
            return None
        pairs = zip(self.run_tokens, self.export_tokens, strict=False)
        shorter = min(len(self.run_tokens), len(self.export_tokens))
        return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)

    @property
    def is_tie(self) -> bool:
        """Whether the export's first different token is as likely as the run's up to rounding."""
        index = self.first_difference
        if index is None or index >= len(self.own):
            return False
        return self.best[index] - self.own[index] < TIE_NATS


@dataclass(frozen=True)
class Agreement:
    """How far the answers of an export agree with its run's."""

    equal_answers: int
    ties: int
    first_difference_median: float | None
    token_agreement: float
    tasks: dict[str, TaskCheck]
    problems: list[str]


def measure_agreement(
    answers: Sequence[Answer],
    metrics: Mapping[str, Metric],
    cluster_columns: Mapping[str, str | None],
    must_be_equal: bool,
) -> Agreement:
    """Compares the answers, at least one, with those of the run.

    Args:
        metrics: the metric of each task.
        cluster_columns: the column whose equal values make the rows of a task dependent, or None.
        must_be_equal: whether an answer that is neither equal nor a tie is a problem.
    """
    differences = [index + 1 for answer in answers if (index := answer.first_difference) is not None]
    equal = len(answers) - len(differences)
    # In lower precision a difference is one of precision, whatever its size.
    ties = sum(answer.is_tie for answer in answers) if must_be_equal else 0
    chosen = [one == other for answer in answers for one, other in zip(answer.run_tokens, answer.choices, strict=True)]
    agreement = 100 * sum(chosen) / max(1, len(chosen))
    by_task: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_task[answer.run.task].append(answer)
    tasks = {}
    for task, own in by_task.items():
        if (check := _task_check(own, metrics[task], cluster_columns.get(task))) is not None:
            tasks[task] = check
    problems = [problem for task, check in tasks.items() if (problem := _decline(task, check))]
    if must_be_equal and equal + ties < len(answers):
        problems.insert(
            0,
            f"{len(answers) - equal - ties} of {len(answers)} answers differ from the run's, first at token "
            f"{min(differences)}; in this precision they must be equal",
        )
    if agreement < MIN_TOKEN_AGREEMENT:
        problems.append(
            f"only {agreement:.0f} % of the run's tokens are the export's choice; it is another model, or too coarse"
        )
    median = statistics.median(differences) if differences else None
    return Agreement(equal, ties, median, agreement, tasks, problems)


def _task_check(answers: Sequence[Answer], metric: Metric, cluster_column: str | None) -> TaskCheck | None:
    """The scores of a task on the rows that could be scored; None if none could be."""
    scored = []
    for answer in answers:
        run, export = metric.score(answer.run.model_dump()), metric.score(answer.export.model_dump())
        if run.value is not None and export.value is not None:
            fields: Mapping[str, Any] = answer.run.fields
            cluster = str(fields.get(cluster_column)) if cluster_column else dump(fields)
            scored.append((run.value, export.value, cluster))
    if not scored:
        return None
    before, after, clusters = zip(*scored, strict=True)
    # Several answers of one conversation are not independent: their row is then their cluster.
    has_clusters = cluster_column is not None or len({answer.run.row for answer in answers}) < len(answers)
    comparison = compare(before, after, binary=metric.binary, clusters=clusters if has_clusters else None)
    return TaskCheck(
        n=comparison.n,
        title=metric.title,
        unit=metric.unit.value,
        higher_is_better=metric.higher_is_better,
        run=comparison.base,
        export=comparison.tuned,
        delta=comparison.delta,
        ci95=comparison.ci95,
        equal_answers=sum(answer.is_equal for answer in answers),
        answers=len(answers),
    )


def _decline(task: str, check: TaskCheck) -> str | None:
    """A sentence if the score is significantly worse than the margin allows."""
    margin = NLL_MARGIN if check.unit == "nats/token" else MARGIN
    low, high = check.ci95
    best_gain = high if check.higher_is_better else -low
    if best_gain >= -margin:
        return None
    return (
        f"task {task}: {check.title} {check.run:.3g} in the run, {check.export:.3g} in the export "
        f"({check.delta:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}): significantly worse by more than {margin:g}"
    )
