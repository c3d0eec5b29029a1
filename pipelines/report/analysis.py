"""From the files of a run to what every form of the report shows, computed once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import Problem, RunError
from pipelines.forgetting_keys import DESCRIPTIVE, named
from pipelines.metrics import Metric, resolve
from pipelines.report.gates import judge
from pipelines.report.guards import (
    BackwardTransfer,
    GuardResult,
    backward_transfer,
    guard_changes,
    guard_results,
    learned_and_lost,
)
from pipelines.report.run_files import Completion, Manifest, RunFiles, Stage, Training, read_run
from pipelines.report.wording import BASE_AND_TUNED, signed, unit_name
from pipelines.statistics import Comparison, bootstrap_interval, compare, holm

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
        already = ["peft" if self.config.get("adapter") else "full", *(["multitask"] if len(pipeline["tasks"]) > 1 else [])]
        used = named(pipeline.get("forgetting", {}).get("strategy", "none"))
        return f"{', '.join(dict.fromkeys([*already, *(word for word in used if word in DESCRIPTIVE)]))}; " + (
            f"against forgetting: {', '.join(word for word in used if word not in DESCRIPTIVE) or 'nothing'}"
        )

    @property
    def learned_and_lost(self) -> str:
        """One line in plain words; "" without guards."""
        return learned_and_lost(
            [f"{task.name} ({signed(task.delta, task.unit)} {unit_name(task.unit)})" for task in self.tasks.values()
             if task.verdict == "better"],
            list(self.guards.values()),
        )  # fmt: skip

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


def analyse(run: Path) -> Analysis:
    """Read the run folder and compare its two sides, row by row. Raises RunError."""
    files = read_run(run)
    sides = files.manifest.sides or BASE_AND_TUNED
    metrics = {task: resolve(name) for task, name in files.metrics.items()}
    _some_answer(files, metrics)
    examples = [_example(base, tuned, metrics[base.task]) for base, tuned in zip(files.base, files.tuned, strict=True)]
    probes = [
        Probe(base.title, base.prompt, base.completion, tuned.completion)
        for base, tuned in zip(files.base_probes, files.tuned_probes, strict=True)
    ]
    tasks = _tasks(files, metrics, examples, sides)
    guards = guard_results(files.base_guards, files.tuned_guards)
    return Analysis(
        manifest=files.manifest,
        config=files.config,
        tasks=tasks,
        examples=examples,
        probes=probes,
        training=files.training,
        sides=sides,
        gates=judge(files.config, tasks, guards),
        guards=guards,
        guard_changes=guard_changes(files.base_guards, files.tuned_guards),
        bwt=backward_transfer(files.tuned_guards),
    )


def _example(base: Completion, tuned: Completion, metric: Metric) -> Example:
    was, now = metric.score(base.model_dump()), metric.score(tuned.model_dump())
    gain = 0.0
    change: Change = "unscored"
    if was.value is not None and now.value is not None:
        gain = (now.value - was.value) * (1 if metric.higher_is_better else -1)
        change = "same" if math.isclose(now.value, was.value) else "better" if gain > 0 else "worse"
    return Example(
        task=base.task,
        row=base.row,
        prompt=base.prompt,
        reference=base.reference,
        base=base.completion,
        tuned=tuned.completion,
        base_score=was.value,
        tuned_score=now.value,
        base_detail=was.detail,
        tuned_detail=now.detail,
        change=change,
        gain=gain,
        both_wrong=metric.binary and was.value == 0 and now.value == 0,
    )


def _tasks(
    files: RunFiles, metrics: dict[str, Metric], examples: Sequence[Example], sides: tuple[str, str]
) -> dict[str, TaskResult]:
    comparisons = {task: _compare(task, metrics, examples, files) for task in metrics}
    p_values = [comparison.p_value for comparison in comparisons.values()]
    return {
        task: _task(task, metrics[task], comparisons[task], p_holm, files, examples, sides)
        for task, p_holm in zip(metrics, holm(p_values), strict=True)
    }


def _compare(task: str, metrics: dict[str, Metric], examples: Sequence[Example], files: RunFiles) -> Comparison:
    group = files.group_column(task)
    scored = [
        (example.base_score, example.tuned_score, group and str(line.fields.get(group)))
        for example, line in zip(examples, files.base, strict=True)
        if example.task == task and example.base_score is not None and example.tuned_score is not None
    ]
    if not scored:
        message = (
            f"task {task!r}: no row could be scored on both sides; read the completions, "
            "then give the task another metric in the config and run the job again"
        )
        raise RunError(Problem(message, str(files.path / "tuned" / "completions.jsonl")))
    base, tuned, clusters = zip(*scored, strict=True)
    return compare(
        base, tuned, binary=metrics[task].binary, clusters=clusters if group else None, comparisons=len(metrics)
    )


def _task(
    task: str,
    metric: Metric,
    comparison: Comparison,
    p_holm: float,
    files: RunFiles,
    examples: Sequence[Example],
    sides: tuple[str, str],
) -> TaskResult:
    from pipelines.report.findings import flags, loose_scores

    mine = [example for example in examples if example.task == task]
    base = [line for line in files.base if line.task == task]
    tuned = [line for line in files.tuned if line.task == task]
    changes = [example.change for example in mine]
    losses = [(one.reference_loss, other.reference_loss) for one, other in zip(base, tuned, strict=True)]
    loose = loose_scores(mine) if metric.name == "label" else None
    result = TaskResult(
        name=task,
        metric=metric.name,
        title=metric.title,
        unit=metric.unit,
        binary=metric.binary,
        higher_is_better=metric.higher_is_better,
        n=comparison.n,
        base=comparison.base,
        tuned=comparison.tuned,
        delta=comparison.delta,
        ci95=comparison.ci95,
        p_value=comparison.p_value,
        p_holm=p_holm,
        better=changes.count("better"),
        worse=changes.count("worse"),
        same=changes.count("same"),
        unscored_base=sum(example.base_score is None for example in mine),
        unscored_tuned=sum(example.tuned_score is None for example in mine),
        rows_needed=comparison.rows_needed,
        loss=_loss(losses),
        loose=Sides(*loose) if loose else None,
    )
    result.flags.extend(flags(result, base, tuned, sides))
    return result


def _loss(pairs: Sequence[tuple[float | None, float | None]]) -> Loss | None:
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < len(pairs):
        return None
    import numpy as np

    base, tuned = np.asarray(known).T
    low, high = bootstrap_interval(tuned - base)
    return Loss(float(base.mean()), float(tuned.mean()), float((tuned - base).mean()), (float(low), float(high)))


def _some_answer(files: RunFiles, metrics: dict[str, Metric]) -> None:
    """A side that answers nothing at all, on no task, is a fault of the run and not a result."""
    for side, lines in (("base", files.base), ("tuned", files.tuned)):
        asked = [line for line in lines if metrics[line.task].unit != "nats/token"]
        if asked and not any(line.completion.strip() for line in asked):
            path = files.path / side / "completions.jsonl"
            mend = "look at config.yaml's generation and learning rate, delete this folder and run the job again"
            raise RunError(Problem(f"every completion is empty; {mend}", str(path)))
