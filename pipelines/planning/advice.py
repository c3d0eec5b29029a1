"""Edits of a config that make a job fit into memory, the one with the largest effect first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.config.job import Job, load_job
from pipelines.config.lr_schedules import effective_batch_size
from pipelines.errors import AlfineError
from pipelines.planning.memory import MemoryPlan
from pipelines.planning.target_hardware import TargetHardware

MAX_EDITS = 3
"""Edits that are combined before the plan gives up."""


@dataclass(frozen=True)
class Edit:
    """Overrides as they are written on the command line, and the peak of the job with them, in bytes."""

    overrides: tuple[str, ...]
    peak: float


def edits_that_fit(
    job: Job, hardware: TargetHardware, plan: Callable[[Job], MemoryPlan], available: float
) -> list[Edit]:
    """The single edits after which the job fits, the lowest peak first; if there is none, one combination of several.

    An empty list: nothing that this function knows makes the job fit.
    """
    current, combined = job, tuple[str, ...]()
    for _ in range(MAX_EDITS):
        edits = sorted(_try_all(current, combined, hardware, plan), key=lambda edit: edit.peak)
        fitting = [edit for edit in edits if edit.peak <= available]
        if fitting:
            return fitting if not combined else fitting[:1]
        if not edits or edits[0].peak >= plan(current).peak:
            return []
        combined = edits[0].overrides
        current = load_job(job.path, [*job.overrides, *combined])
    return []


def _try_all(
    job: Job, combined: tuple[str, ...], hardware: TargetHardware, plan: Callable[[Job], MemoryPlan]
) -> Iterator[Edit]:
    known = job.overrides[: len(job.overrides) - len(combined)] if combined else job.overrides
    for overrides in _candidates(job, hardware):
        try:
            edited = load_job(job.path, [*known, *combined, *overrides])
        except AlfineError:
            continue  # the edit contradicts another key
        yield Edit((*combined, *overrides), plan(edited).peak)


def _candidates(job: Job, hardware: TargetHardware) -> Iterator[tuple[str, ...]]:
    """Edits that keep the optimizer step as it is come first."""
    batch, rows = job.trainer["batch_size"], effective_batch_size(job.trainer)
    if batch == "auto":
        pass
    elif int(batch) > 1:
        yield ("trainer.batch_size=1", f"trainer.gradient_accumulation_steps={rows}")
    if not job.trainer.get("enable_gradient_checkpointing"):
        yield ("trainer.enable_gradient_checkpointing=true",)
    if job.adapter is not None and job.quantization is None:
        yield ("quantization.bits=4",)
    if job.adapter is None:
        yield ("adapter.type=lora", "adapter.r=16")
        if hardware.device == "cuda":
            yield ("trainer.optimizer.type=paged_adamw_8bit",)
            yield ("pipeline.hardware.offload_optimizer=true",)
    length = job.max_sequence_length or 4096
    if length > 512:
        yield (f"preprocessing.global_max_sequence_length={length // 2}", "pipeline.too_long=drop")
