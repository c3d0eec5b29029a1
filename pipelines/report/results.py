"""What the comparison of two models found, as every form of the report shows it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config.forgetting import BASELINE_LABELS, parse_strategies
from pipelines.report.formatting import BASE_AND_TUNED, signed, unit_name
from pipelines.report.retention import BackwardTransfer, GuardResult, learned_and_lost
from pipelines.report.run_files import Manifest, Stage, Training

SIGNIFICANCE = 0.05

Verdict = Literal["better", "worse", "cannot tell"]
Change = Literal["better", "worse", "same", "unscored"]


@dataclass(frozen=True)
class Sides:
    """One number for each model."""

    base: float
    tuned: float


@dataclass(frozen=True)
class Loss:
    """Mean over rows of the reference's loss, in nats per token; `ci95` is that of the difference."""

    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class TaskResult:
    """A task on both models, over the `n` rows that both sides could be scored on."""

    name: str
    metric: str
    title: str
    unit: str
    binary: bool
    single_label: bool
    higher_is_better: bool
    n: int
    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    p_holm: float
    """`p_value` after Holm's correction for the number of tasks."""
    better: int
    """Rows that tuned answers better; with a right-or-wrong metric these went wrong → right."""
    worse: int
    same: int
    unscored_base: int
    unscored_tuned: int
    rows_needed: int | None
    loss: Loss | None
    """None where the two sides count in different tokens."""
    loose: Sides | None
    """Label tasks: share of answers (%) that name the right label and no other, whatever stands around it."""
    scoring: str = ""
    """How the metric compares answers, in sentences."""
    flags: list[str] = field(default_factory=list)
    """Sentences about what makes these numbers worth less than they look."""

    @property
    def told_apart(self) -> bool:
        """The corrected test and the interval agree that the difference is not chance."""
        low, high = self.ci95
        return self.p_holm < SIGNIFICANCE and not low <= 0 <= high

    @property
    def percent_scale(self) -> bool:
        """The score runs from 0 to 100. Of a user's own metric nobody knows."""
        return self.unit in ("%", "points") and ":" not in self.metric

    @property
    def gain(self) -> float:
        """The change, positive where tuned is better."""
        return self.delta if self.higher_is_better else -self.delta

    @property
    def verdict(self) -> Verdict:
        if not self.told_apart:
            return "cannot tell"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Example:
    """A test row with the answers of both models; a score is None where it could not be scored."""

    task: str
    row: int
    prompt: str
    reference: str
    base: str
    tuned: str
    base_score: float | None
    tuned_score: float | None
    base_detail: str
    tuned_detail: str
    change: Change
    gain: float
    """Change of the score, positive where tuned is better; 0 where unscored."""
    both_wrong: bool


@dataclass(frozen=True)
class Probe:
    """A free prompt and the answers of both models."""

    title: str | None
    prompt: str
    base: str
    tuned: str


@dataclass(frozen=True)
class GateResult:
    """A condition that the run was to meet, and the sentence that says whether it did."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Analysis:
    """All that a report shows. `examples` stand in the order of the completions."""

    manifest: Manifest
    config: dict[str, Any]
    tasks: dict[str, TaskResult]
    examples: list[Example]
    probes: list[Probe]
    training: Training | None
    """None where two finished runs are compared: each has its own."""
    sides: tuple[str, str] = BASE_AND_TUNED
    """What the two models are called wherever a reader sees them."""
    gates: list[GateResult] = field(default_factory=list)
    guards: dict[str, GuardResult] = field(default_factory=dict)
    """What the base could do and the tuned model must still do."""
    guard_changes: dict[str, list[float]] = field(default_factory=dict)
    """By guard, `tuned - base` of each item that both could be scored on."""
    bwt: BackwardTransfer | None = None
    """Where the run goes on from an earlier one."""

    @property
    def strategies(self) -> str:
        """What the job's tasks and adapter already are, and what was done against forgetting."""
        pipeline = self.config["pipeline"]
        already = [
            "peft" if self.config.get("adapter") else "full",
            *(["multitask"] if len(pipeline["tasks"]) > 1 else []),
        ]
        used = parse_strategies(pipeline.get("forgetting", {}).get("strategy", "none"))
        return f"{', '.join(dict.fromkeys([*already, *(word for word in used if word in BASELINE_LABELS)]))}; " + (
            f"against forgetting: {', '.join(word for word in used if word not in BASELINE_LABELS) or 'nothing'}"
        )

    @property
    def learned_and_lost(self) -> str:
        """One line in plain words; "" without guards."""
        return learned_and_lost(
            [
                f"{task.name} ({signed(task.delta, task.unit)} {unit_name(task.unit)})"
                for task in self.tasks.values()
                if task.verdict == "better"
            ],
            list(self.guards.values()),
        )

    @property
    def scoring(self) -> dict[str, str]:
        """By the title of a metric, how it compares answers; metrics that need no such word are left out."""
        return {task.title: task.scoring for task in self.tasks.values() if task.scoring}

    @property
    def digest(self) -> str:
        """SHA-256 of all answers of both sides: a rating belongs to these answers and to no others."""
        rows = [[example.task, example.row, example.base, example.tuned] for example in self.examples]
        prompts = [[probe.prompt, probe.base, probe.tuned] for probe in self.probes]
        return hashlib.sha256(json.dumps([rows, prompts]).encode()).hexdigest()

    @property
    def failed_first(self) -> list[GateResult]:
        return sorted(self.gates, key=lambda gate: gate.passed)

    @property
    def stages(self) -> dict[str, Stage]:
        """Without the report's own: its time would make the second report differ from the first."""
        return {name: stage for name, stage in self.manifest.stages.items() if name != "report"}

    @property
    def worst_first(self) -> list[Example]:
        """The greatest regressions first, the greatest gains last, the unscored behind them; among the
        unchanged, those that both models got wrong first."""
        return sorted(
            self.examples,
            key=lambda example: (example.change == "unscored", example.gain, not example.both_wrong),
        )
