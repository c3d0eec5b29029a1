"""Edits of a config that make a job fit into memory, the one with the largest effect first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.config.job import Job, load_job
from pipelines.config.lr_schedules import effective_batch_size
from pipelines.errors import AlfineError
from pipelines.planning.target_hardware import TargetHardware

MAX_EDITS = 4
"""Edits that are combined before the plan gives up."""
MIN_LENGTH = 256
"""Tokens below which the limit of a row is not lowered."""
MAX_LEFT_OUT = 0.5
"""The share of a task's rows that a lower limit may leave out."""


@dataclass(frozen=True)
class Outcome:
    """What a job needs after an edit.

    Attributes:
        peak: bytes of memory.
        longest: the tokens of its longest row.
        left_out: the largest share of a task's rows that are longer than the limit and left out.
    """

    peak: float
    longest: int
    left_out: float = 0.0


@dataclass(frozen=True)
class Edit:
    """Overrides as they are written on the command line, and what the job needs with them."""

    overrides: tuple[str, ...]
    peak: float
    left_out: float = 0.0


def edits_that_fit(job: Job, hardware: TargetHardware, plan: Callable[[Job], Outcome], available: float) -> list[Edit]:
    """The single edits after which the job fits, the lowest peak first; if there is none, one combination of several.

    plan: what a job needs. Raises AlfineError for one that cannot run.
    An empty list: nothing that this function knows makes the job fit.
    """
    current, combined = job, tuple[str, ...]()
    for _ in range(MAX_EDITS):
        outcome = plan(current)
        edits = sorted(_try_all(job, current, combined, hardware, plan, available), key=lambda edit: edit.peak)
        fitting = [edit for edit in edits if edit.peak <= available]
        if fitting:
            return fitting if not combined else fitting[:1]
        if not edits or edits[0].peak >= outcome.peak:
            return []
        combined = edits[0].overrides
        current = load_job(job.path, [*job.overrides, *combined])
    return []


def _try_all(
    job: Job,
    current: Job,
    combined: tuple[str, ...],
    hardware: TargetHardware,
    plan: Callable[[Job], Outcome],
    available: float,
) -> Iterator[Edit]:
    """The possible edits of `current`, which is `job` with the edits `combined`."""

    def tried(overrides: tuple[str, ...]) -> Edit | None:
        together = _merged(combined, overrides)
        try:
            outcome = plan(load_job(job.path, [*job.overrides, *together]))
        except AlfineError:
            return None  # the edit contradicts another key
        is_possible = outcome.left_out <= MAX_LEFT_OUT
        return Edit(together, outcome.peak, outcome.left_out) if is_possible else None

    yield from filter(None, map(tried, _candidates(current, hardware)))
    # Of the limits on the length of a row, the highest with which the job fits, else the lowest.
    lowest: Edit | None = None
    for overrides in _shorter_rows(current, plan(current).longest):
        edit = tried(overrides)
        if edit is None:
            break
        lowest = edit
        if edit.peak <= available:
            break
    if lowest is not None:
        yield lowest


def _merged(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides of both; for a key that both set, those of the second."""
    keys = {override.partition("=")[0] for override in second}
    return (*(override for override in first if override.partition("=")[0] not in keys), *second)


def _candidates(job: Job, hardware: TargetHardware) -> Iterator[tuple[str, ...]]:
    """Edits that keep the optimizer step as it is come first."""
    batch, rows = job.trainer["batch_size"], effective_batch_size(job.trainer)
    if batch != "auto" and int(batch) > 1:
        yield ("trainer.batch_size=1", f"trainer.gradient_accumulation_steps={rows}")
    if not job.trainer.get("enable_gradient_checkpointing"):
        yield ("trainer.enable_gradient_checkpointing=true",)
    if job.adapter is not None and int((job.quantization or {}).get("bits", 16)) > 4:
        yield ("quantization.bits=4",)
    if job.adapter is None:
        yield ("adapter.type=lora", "adapter.r=16")
        if hardware.device == "cuda":
            yield ("trainer.optimizer.type=paged_adamw_8bit",)
            yield ("pipeline.hardware.offload_optimizer=true",)


def _shorter_rows(job: Job, longest: int) -> Iterator[tuple[str, ...]]:
    """Lower limits on the length of a row, the highest one first. Longer rows are left out, or shortened if the config
    says so."""
    drop = []
    if any(task.too_long is None for task in job.pipeline.tasks.values()) and job.pipeline.too_long == "refuse":
        drop.append("pipeline.too_long=drop")
    drop += [
        f"pipeline.tasks.{name}.too_long=drop" for name, task in job.pipeline.tasks.items() if task.too_long == "refuse"
    ]
    length = min(job.max_sequence_length or longest, longest)
    while (length := length * 3 // 4) >= MIN_LENGTH:
        rounded = length // 64 * 64
        yield (f"preprocessing.global_max_sequence_length={rounded}", *drop)
