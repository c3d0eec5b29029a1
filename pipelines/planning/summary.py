"""The three lines of a plan that `alfine run` prints as well."""

from __future__ import annotations

from pipelines.planning.duration import format_duration
from pipelines.planning.plan import Plan
from pipelines.storage.sizes import format_bytes


def work_line(plan: Plan) -> str:
    """How much will be trained."""
    work = plan.workload
    about = "about " if any(task.is_sampled for task in work.tasks) else ""
    rows = f"{work.total('train'):,} training rows of {about}{work.mean_length:,.0f} tokens"
    steps = f"{work.steps.total:,} steps of {work.rows_per_step} rows"
    return f"work: {rows}, {steps}; {work.num_test_rows:,} test rows are answered by both models"


def memory_line(plan: Plan) -> str:
    """The peak, what it is for, and whether it fits."""
    stage = "training" if plan.memory.training_peak >= plan.memory.completions_peak else "completions"
    verdict = "fits into" if plan.fits else "does not fit into"
    where = "free" if plan.hardware.is_here else "of the GPU"
    peak, available = format_bytes(plan.memory.peak), format_bytes(plan.available)
    return f"memory: {peak} at the peak ({stage}), {verdict} {available} {where}"


def duration_line(plan: Plan) -> str:
    """The time of all stages, and of the longest one."""
    stage, seconds = max(plan.duration.stages.items(), key=lambda item: item[1])
    certainty = "" if plan.duration.rates.is_measured else ", within a factor of 2"
    total, longest = format_duration(plan.duration.total), format_duration(seconds)
    return f"time: {total}{certainty}; the longest stage is {stage}, {longest}"
