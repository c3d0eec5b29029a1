"""Gates: what the YAML demands of a run, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.report.wording import interval, signed, unit_name

if TYPE_CHECKING:
    from pipelines.report.analysis import GateResult, TaskResult


def judge(config: Mapping[str, Any], tasks: Mapping[str, TaskResult]) -> list[GateResult]:
    """A result for each of `pipeline.report.gates`, the failed ones first."""
    gates = config["pipeline"].get("report", {}).get("gates", {})
    results = [_judge(tasks[name], gate["least_gain"], gate.get("of", "interval")) for name, gate in gates.items()]
    return sorted(results, key=lambda result: result.passed)


def _judge(task: TaskResult, least_gain: float, of: str) -> GateResult:
    from pipelines.report.analysis import GateResult

    low, high = task.ci95
    reached = task.gain if of == "value" else low if task.higher_is_better else -high
    passed = reached >= least_gain
    unit = task.unit
    asked = f"a gain of at least {signed(least_gain, unit)} {unit_name(unit)} was asked"
    if of == "value":
        found = f"the gain is {signed(task.gain, unit)}"
    else:
        span = task.ci95 if task.higher_is_better else (-high, -low)
        found = f"the gain is {signed(task.gain, unit)}, its 95 % interval {interval(span, unit)}"
    where = "" if of == "value" else " of the interval's lower end"
    return GateResult(task.name, passed, f"{asked}{where}; {found}.")
