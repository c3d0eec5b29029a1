"""Quality gates: the conditions on results that the YAML sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.report.few_shot import given_in_prompt
from pipelines.report.formatting import change_unit, interval, number, signed
from pipelines.report.results import GateResult, PairedResult, TaskResult
from pipelines.report.retention import RetentionResult


def check_gates(
    config: Mapping[str, Any], tasks: Mapping[str, TaskResult], retention: Mapping[str, RetentionResult]
) -> list[GateResult]:
    """A result for each gate of `pipeline.report.gates`, failed ones first."""
    results = []
    for name, gate in config["pipeline"].get("report", {}).get("gates", {}).items():
        by_ci = gate.get("by", "ci") == "ci"
        beyond = gate.get("min_gain_beyond_few_shot")
        if gate.get("min_gain") is not None:
            results.append(_check_gain(name, tasks[name], gate["min_gain"], by_ci))
        if beyond is not None:
            results.append(_check_gain_beyond_few_shot(tasks[name], beyond, by_ci))
        if gate.get("max_drop") is None:
            continue
        if name in retention:
            results.append(_check_regression(retention[name], gate["max_drop"], by_ci))
        else:
            results.append(GateResult(name, False, "the retention eval was not measured in this run."))
    return sorted(results, key=lambda result: result.passed)


def _check_gain_beyond_few_shot(task: TaskResult, min_gain: float, by_ci: bool) -> GateResult:
    if task.few_shot is None:
        return GateResult(task.name, False, "the base had no examples in its prompt, so nothing was measured.")
    return _check_gain(task.name, task.few_shot, min_gain, by_ci, f" beyond {given_in_prompt(task.few_shot)}")


def _check_gain(name: str, result: PairedResult, min_gain: float, by_ci: bool, beyond: str = "") -> GateResult:
    """Compares the gain, or the lower bound of its 95 % interval, with the required one."""
    unit, ci95 = result.unit, result.gain_ci95
    value = ci95[0] if by_ci else result.gain
    required = f"required: a gain{beyond} of at least {signed(min_gain, unit)} {change_unit(unit)}"
    measured = f"measured: {signed(result.gain, unit)}"
    if by_ci:
        required += " at the lower bound of the 95 % CI"
        measured += f" (95 % CI {interval(ci95, unit)})"
    return GateResult(name, value >= min_gain, f"{required}; {measured}.")


def _check_regression(result: RetentionResult, max_drop: float, by_ci: bool) -> GateResult:
    """Compares the regression, or the pessimistic bound of its 95 % interval, with the allowed one."""
    unit = result.unit
    value = result.regression_bound if by_ci else result.regression
    required = f"required: a regression of at most {number(max_drop, unit)} {change_unit(unit)}"
    if by_ci:
        required += ", using the pessimistic bound of the 95 % CI"
    comparison = result.comparison
    measured = f"measured change: {signed(comparison.delta, unit)} (95 % CI {interval(comparison.ci95, unit)})"
    return GateResult(result.name, value <= max_drop, f"{required}; {measured}.")
