"""Gates: what the YAML demands of a run, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.report.formatting import interval, number, signed, unit_name
from pipelines.report.results import GateResult, TaskResult
from pipelines.report.retention import GuardResult


def judge(
    config: Mapping[str, Any], tasks: Mapping[str, TaskResult], guards: Mapping[str, GuardResult]
) -> list[GateResult]:
    """A result for each of `pipeline.report.gates`, the failed ones first."""
    results = []
    for name, gate in config["pipeline"].get("report", {}).get("gates", {}).items():
        by = gate.get("by", "ci")
        if gate.get("min_gain") is not None:
            results.append(_judge(tasks[name], gate["min_gain"], by))
        else:
            results.append(_judge_guard(name, guards.get(name), gate["max_drop"], by))
    return sorted(results, key=lambda result: result.passed)


def _judge_guard(name: str, guard: GuardResult | None, max_drop: float, by: str) -> GateResult:
    if guard is None:
        return GateResult(name, False, "the guard was not measured in this run.")
    reached = guard.loss if by == "point_estimate" else guard.greatest_loss
    where = "" if by == "point_estimate" else ", by the worse end of the 95 % interval"
    unit = unit_name(guard.unit)
    asked = f"a loss of at most {number(max_drop, guard.unit)} {unit} was asked{where}"
    found = f"the change is {signed(guard.delta, guard.unit)}, its 95 % interval {interval(guard.ci95, guard.unit)}"
    return GateResult(name, reached <= max_drop, f"{asked}; {found}.")


def _judge(task: TaskResult, min_gain: float, by: str) -> GateResult:
    low, high = task.ci95
    reached = task.gain if by == "point_estimate" else low if task.higher_is_better else -high
    passed = reached >= min_gain
    unit = task.unit
    asked = f"a gain of at least {signed(min_gain, unit)} {unit_name(unit)} was asked"
    if by == "point_estimate":
        found = f"the gain is {signed(task.gain, unit)}"
    else:
        span = task.ci95 if task.higher_is_better else (-high, -low)
        found = f"the gain is {signed(task.gain, unit)}, its 95 % interval {interval(span, unit)}"
    where = "" if by == "point_estimate" else " of the interval's lower end"
    return GateResult(task.name, passed, f"{asked}{where}; {found}.")
