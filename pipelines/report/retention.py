"""What the base could do, held against what the tuned model still can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipelines.report.formatting import count, number, signed, unit_name
from pipelines.scoring.metric import resolve
from pipelines.scoring.statistics import ALPHA, Comparison, bootstrap_interval, compare, holm, proportion_interval

if TYPE_CHECKING:
    from pipelines.report.run_files import GuardScore

TITLES = {"multiple_choice": "multiple choice", "text_nll": "loss on text", "kl": "divergence from base"}

Verdict = Literal["lost", "gained", "no loss seen", "drift"]


@dataclass(frozen=True)
class GuardResult:
    """A guard on both models, over the `n` items that both could be scored on."""

    name: str
    kind: str
    title: str
    unit: str
    higher_is_better: bool
    n: int
    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_holm: float | None
    """Corrected for the number of guards; None for a divergence, which cannot be less than 0."""
    lost: int
    """Items that tuned does worse; for choices right → wrong."""
    gained: int
    flags: list[str] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The change, positive where tuned is worse."""
        return -self.delta if self.higher_is_better else self.delta

    @property
    def greatest_loss(self) -> float:
        """The worse end of the 95 % interval."""
        return -self.ci95[0] if self.higher_is_better else self.ci95[1]

    @property
    def verdict(self) -> Verdict:
        if self.kind == "kl":
            return "drift"
        if self.p_holm is None or self.p_holm >= ALPHA or self.ci95[0] <= 0 <= self.ci95[1]:
            return "no loss seen"
        return "lost" if self.loss > 0 else "gained"

    @property
    def sentence(self) -> str:
        """What the numbers say, in plain words, without the guard's name."""
        unit = unit_name(self.unit)
        numbers = (
            f"{self.title} {number(self.base, self.unit)} → {number(self.tuned, self.unit)} on {count(self.n, 'item')}"
        )
        if self.kind == "kl":
            drifted = f"its general answers drifted by {number(self.tuned, self.unit)} {unit} from the base's"
            return f"{drifted} ({count(self.n, 'item')})."
        if self.verdict == "no loss seen":
            return f"no loss seen: {numbers}; one of {number(max(self.greatest_loss, 0), self.unit)} {unit} cannot be ruled out."
        return f"{self.verdict}: {numbers}, {signed(self.delta, self.unit)} {unit}."


@dataclass(frozen=True)
class BackwardTransfer:
    """BWT: the mean over earlier tasks of their score now minus their score right behind the job that trained them."""

    value: float
    ci95: tuple[float, float]
    tasks: int


def guard_results(base: Sequence[GuardScore], tuned: Sequence[GuardScore]) -> dict[str, GuardResult]:
    """By name, in the order of the files. A guard without a pair that could be scored is left out."""
    pairs: dict[str, list[tuple[GuardScore, GuardScore]]] = {}
    for one, other in zip(base, tuned, strict=True):
        if one.score is not None and other.score is not None:
            pairs.setdefault(one.guard, []).append((one, other))
    compared = {name: _compare(found) for name, found in pairs.items()}
    tested = [name for name, found in pairs.items() if found[0][0].kind != "kl"]
    corrected = dict(zip(tested, holm([compared[name].p_value for name in tested]), strict=True))
    return {name: _result(found, compared[name], corrected.get(name)) for name, found in pairs.items()}


def guard_changes(base: Sequence[GuardScore], tuned: Sequence[GuardScore]) -> dict[str, list[float]]:
    """By guard, `tuned - base` of each item that both could be scored on."""
    changes: dict[str, list[float]] = {}
    for one, other in zip(base, tuned, strict=True):
        if one.score is not None and other.score is not None:
            changes.setdefault(one.guard, []).append(other.score - one.score)
    return changes


def _compare(pairs: Sequence[tuple[GuardScore, GuardScore]]) -> Comparison:
    first = pairs[0][0]
    binary = first.kind == "multiple_choice" or (first.kind == "task" and resolve(first.metric).binary)
    return compare([one.score or 0.0 for one, _ in pairs], [other.score or 0.0 for _, other in pairs], binary=binary)


def _result(pairs: Sequence[tuple[GuardScore, GuardScore]], found: Comparison, p_holm: float | None) -> GuardResult:
    first = pairs[0][0]
    metric = resolve(first.metric) if first.kind == "task" else None
    higher = metric.higher_is_better if metric else first.kind == "multiple_choice"
    worse, better = (found.lost, found.gained) if higher else (found.gained, found.lost)
    return GuardResult(
        name=first.guard,
        kind=first.kind,
        title=metric.title if metric else TITLES[first.kind],
        unit=metric.unit if metric else "%" if first.kind == "multiple_choice" else "nats/token",
        higher_is_better=higher,
        n=found.n,
        base=found.base,
        tuned=found.tuned,
        delta=found.delta,
        ci95=found.ci95,
        p_holm=p_holm,
        lost=worse,
        gained=better,
        flags=_flags(pairs, found),
    )


def _flags(pairs: Sequence[tuple[GuardScore, GuardScore]], found: Comparison) -> list[str]:
    chances = [one.chance for one, _ in pairs if one.chance is not None]
    if not chances:
        return []
    chance = sum(chances) / len(chances)
    low, high = proportion_interval(round(found.base / 100 * found.n), found.n)
    if low <= chance <= high:
        scores = f"{number(found.base)} %, guessing gives {number(chance)} %"
        return [f"The base is at chance ({scores}): this guard can show no loss."]
    return []


def backward_transfer(tuned: Sequence[GuardScore]) -> BackwardTransfer | None:
    """None where the job goes on from no other."""
    import numpy as np

    differences: dict[str, list[float]] = {}
    for line in tuned:
        if line.own is not None and line.score is not None:
            sign = 1 if resolve(line.metric).higher_is_better else -1
            differences.setdefault(line.guard, []).append(sign * (line.score - line.own))
    if not differences:
        return None
    total, tasks = sum(map(len, differences.values())), len(differences)
    # Weighted so that the mean over items is the mean over tasks of the tasks' means.
    weighted = [one * total / (tasks * len(found)) for found in differences.values() for one in found]
    low, high = bootstrap_interval(np.asarray(weighted))
    return BackwardTransfer(float(np.mean(weighted)), (float(low), float(high)), tasks)


def learned_and_lost(learned: Sequence[str], guards: Sequence[GuardResult]) -> str:
    """One line in plain words. `learned`: the tasks that got better."""
    if not guards:
        return ""
    lost, drift = [], []
    for guard in guards:
        if guard.verdict == "lost":
            lost.append(f"{guard.name} ({signed(guard.delta, guard.unit)} {unit_name(guard.unit)})")
        elif guard.verdict == "drift":
            drift.append(f"its general answers drifted by {number(guard.tuned, guard.unit)} nats/token")
    first = f"Learned: {', '.join(learned) or 'nothing that these rows can tell'}."
    second = f"Lost: {', '.join(lost) or 'nothing that the guards can tell'}"
    return f"{first} {'; '.join([second, *drift])}."
