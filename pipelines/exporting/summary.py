"""The result of a check in words."""

from __future__ import annotations

from pipelines.exporting.records import ExportCheck, TaskCheck


def check_lines(check: ExportCheck) -> list[str]:
    """The result of a check as lines of plain text."""
    versions = ", ".join(f"{name} {version}" for name, version in check.engine_versions.items())
    lines = [
        f"check: {'passed' if check.passed else 'failed'}; {check.engine} ({versions}) on {check.device}",
        f"prompts: {check.equal_prompts} of {check.rows} with the same tokens",
        answers_line(check),
    ]
    return [*lines, *(task_line(name, task) for name, task in check.tasks.items())]


def answers_line(check: ExportCheck) -> str:
    """How many answers are equal, and where the others differ first."""
    parts = [f"answers: {check.equal_answers} of {check.rows} equal"]
    if check.ties:
        parts.append(f"{check.ties} differ by a tie of two tokens")
    if check.first_difference_median is not None:
        parts.append(f"first difference at token {check.first_difference_median:g} (median)")
    parts.append(f"{check.token_agreement:.1f} % of the run's tokens are the export's choice")
    return "; ".join(parts)


def task_line(name: str, task: TaskCheck) -> str:
    """The scores of a task in the run and in the export."""
    decimals = 3 if task.unit == "nats/token" else 1
    run, export, delta, low, high = (
        f"{value:.{decimals}f}" for value in (task.run, task.export, task.delta, *task.ci95)
    )
    return (
        f"{name}: {task.title} {run} in the run, {export} in the export "
        f"({'+' if task.delta >= 0 else ''}{delta}, 95 % interval {low} to {high}; "
        f"{task.equal_answers} of {task.answers} answers equal)"
    )
