"""Retention: the scores of the base on the retention evals, compared with those of the tuned model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.config.retention_registry import RETENTION_EVAL_KINDS, retention_eval_kinds
from pipelines.errors import RunError
from pipelines.evaluation.retention import Measure, retention_eval_class
from pipelines.report.formatting import change_unit, count, number, signed
from pipelines.scoring.metric import Unit, metric_from_key
from pipelines.scoring.statistics import (
    Comparison,
    bootstrap_interval,
    compare,
    holm,
    is_significant,
    wilson_interval,
)
from pipelines.storage.records import RetentionRecord

RetentionVerdict = Literal["regressed", "improved", "no significant regression"]
RecordPairs = Sequence[tuple[RetentionRecord, RetentionRecord]]
"""The records of the same items: of the base, and of the tuned model."""


def _measure(record: RetentionRecord) -> Measure:
    """What the score of a record measures. Raises RunError for a kind that this version does not have."""
    if record.kind not in RETENTION_EVAL_KINDS:
        kinds = ", ".join(retention_eval_kinds())
        raise RunError(f"retention eval {record.eval}: unknown kind {record.kind!r}; this alfine has {kinds}")
    return retention_eval_class(record.kind).measure(record.metric)


@dataclass(frozen=True)
class RetentionResult:
    """A retention eval, scored on the items that could be scored on both models."""

    name: str
    kind: str
    measure: Measure
    comparison: Comparison
    p_holm: float | None
    """The p-value after Holm's correction for the number of evals; None for a divergence, which is not tested."""
    caveats: list[str] = field(default_factory=list)
    """Sentences about what limits the meaning of the result."""

    @property
    def title(self) -> str:
        """The name of the measure in the report."""
        return self.measure.title

    @property
    def unit(self) -> Unit:
        """The unit of the scores."""
        return self.measure.unit

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        return self.measure.higher_is_better

    @property
    def num_better(self) -> int:
        """Items with a better score of the tuned model; for multiple choice wrong → right."""
        return self.comparison.num_increased if self.higher_is_better else self.comparison.num_decreased

    @property
    def num_worse(self) -> int:
        """Items with a worse score of the tuned model."""
        return self.comparison.num_decreased if self.higher_is_better else self.comparison.num_increased

    @property
    def regression(self) -> float:
        """The change of the mean score, positive if the tuned model is worse."""
        return -self.comparison.delta if self.higher_is_better else self.comparison.delta

    @property
    def regression_bound(self) -> float:
        """The pessimistic bound of the 95 % interval of `regression`."""
        low, high = self.comparison.ci95
        return -low if self.higher_is_better else high

    @property
    def significant(self) -> bool:
        """Whether the difference is significant after the correction for the number of evals."""
        return self.p_holm is not None and is_significant(self.p_holm, self.comparison.ci95)

    @property
    def verdict(self) -> RetentionVerdict | None:
        """The result in a few words; None for a divergence, which is not tested."""
        if self.measure.is_divergence:
            return None
        if not self.significant:
            return "no significant regression"
        return "regressed" if self.regression > 0 else "improved"

    @property
    def summary(self) -> str:
        """The result in a sentence, without the name of the eval."""
        unit, items = change_unit(self.unit), count(self.comparison.n, "item")
        base, tuned = number(self.comparison.base, self.unit), number(self.comparison.tuned, self.unit)
        if self.measure.is_divergence:
            return f"{self.measure.long_title or self.title}: {tuned} {unit} ({items})."
        if self.verdict == "no significant regression":
            bound = f"the 95 % CI includes a regression of {number(max(self.regression_bound, 0), self.unit)} {unit}"
            return f"{self.verdict}: {self.title} {base} → {tuned} on {items}; {bound}."
        change = f"{signed(self.comparison.delta, self.unit)} {unit}"
        return f"{self.verdict}: {self.title} {base} → {tuned} on {items}, {change}."


@dataclass(frozen=True)
class BackwardTransfer:
    """Backward transfer (BWT): the mean over earlier tasks of the score now minus that right after the task's own run.

    Lopez-Paz and Ranzato 2017, arXiv:1706.08840.
    """

    value: float
    ci95: tuple[float, float]
    tasks: int


def compare_retention(base: Sequence[RetentionRecord], tuned: Sequence[RetentionRecord]) -> dict[str, RetentionResult]:
    """The results by name, in the order of the records. Evals without an item scored on both models are left out."""
    pairs = _scored_pairs(base, tuned)
    measures = {name: _measure(records[0][0]) for name, records in pairs.items()}
    comparisons = {name: _compare(records, measures[name]) for name, records in pairs.items()}
    tested = [name for name, measure in measures.items() if not measure.is_divergence]
    p_holm = dict(zip(tested, holm([comparisons[name].p_value for name in tested]), strict=True))
    return {
        name: RetentionResult(
            name=name,
            kind=records[0][0].kind,
            measure=measures[name],
            comparison=comparisons[name],
            p_holm=p_holm.get(name),
            caveats=list(_chance_caveats(records, comparisons[name])),
        )
        for name, records in pairs.items()
    }


def retention_changes(base: Sequence[RetentionRecord], tuned: Sequence[RetentionRecord]) -> dict[str, list[float]]:
    """By eval, `tuned - base` of each item that was scored on both models."""
    return {
        name: [after - before for before, after in _scores(records)]
        for name, records in _scored_pairs(base, tuned).items()
    }


def _scored_pairs(
    base: Sequence[RetentionRecord], tuned: Sequence[RetentionRecord]
) -> dict[str, list[tuple[RetentionRecord, RetentionRecord]]]:
    pairs: dict[str, list[tuple[RetentionRecord, RetentionRecord]]] = {}
    for before, after in zip(base, tuned, strict=True):
        if before.score is not None and after.score is not None:
            pairs.setdefault(before.eval, []).append((before, after))
    return pairs


def _scores(records: RecordPairs) -> list[tuple[float, float]]:
    return [(before.score or 0.0, after.score or 0.0) for before, after in records]


def _compare(records: RecordPairs, measure: Measure) -> Comparison:
    base, tuned = zip(*_scores(records), strict=True)
    return compare(base, tuned, binary=measure.binary)


def _chance_caveats(records: RecordPairs, comparison: Comparison) -> Iterable[str]:
    chances = [before.chance_accuracy for before, _ in records if before.chance_accuracy is not None]
    if not chances:
        return
    chance = sum(chances) / len(chances)
    low, high = wilson_interval(round(comparison.base / 100 * comparison.n), comparison.n)
    if low <= chance <= high:
        accuracies = f"{number(comparison.base)} %, chance is {number(chance)} %"
        yield f"The base is at chance ({accuracies}): this eval cannot show a regression."


def backward_transfer(tuned: Sequence[RetentionRecord]) -> BackwardTransfer | None:
    """The backward transfer over the earlier tasks; None if the run does not continue from an earlier run."""
    changes: dict[str, list[float]] = {}
    for record in tuned:
        if record.score_after_own_task is not None and record.score is not None:
            sign = 1 if metric_from_key(record.metric).higher_is_better else -1
            changes.setdefault(record.eval, []).append(sign * (record.score - record.score_after_own_task))
    if not changes:
        return None
    total, tasks = sum(map(len, changes.values())), len(changes)
    # Weighted so that the mean over items is the mean over tasks of the tasks' means.
    weighted = [change * total / (tasks * len(values)) for values in changes.values() for change in values]
    low, high = bootstrap_interval(np.asarray(weighted))
    return BackwardTransfer(float(np.mean(weighted)), (float(low), float(high)), tasks)
