"""The plan of a job: its work, memory, time, disk and download, without loading a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from pipelines.config.job import Job
from pipelines.config.lr_schedules import effective_batch_size
from pipelines.modeling.base_models import local_folder
from pipelines.modeling.module_names import check_module_names
from pipelines.planning.advice import Edit, Outcome, edits_that_fit
from pipelines.planning.duration import Duration, Rates, estimate_duration, estimate_rates
from pipelines.planning.memory import MemoryPlan, plan_memory
from pipelines.planning.model_shape import ModelShape
from pipelines.planning.remote_model import RemoteModel, find_remote_model
from pipelines.planning.target_hardware import TargetHardware
from pipelines.planning.token_lengths import ExampleTokens, TokenCounter
from pipelines.planning.workload import TaskSample, Workload, measure_workload, row_limit, sample_tasks, too_long_shares

USABLE_FRACTION = {"cpu": 1.0, "cuda": 0.95, "mps": 0.75}
"""Share of a device's memory that a process can use: fragmentation, the display, and macOS' own limit."""
CHECKPOINTS = 3
"""The latest, the previous and the one being written, each with weights and optimizer state."""


@dataclass(frozen=True)
class Plan:
    """What a job needs.

    Attributes:
        disk: bytes in the folder of the run at most.
        download: bytes of the base model that are not in the cache yet; None if that cannot be found out.
        available: bytes that the job may use on the hardware.
        edits: if it does not fit, edits that make it fit.
        too_long: of tasks with rows over the limit that are not shortened, the share of these rows.
    """

    job: Job
    hardware: TargetHardware
    model: ModelShape
    workload: Workload
    memory: MemoryPlan
    duration: Duration
    disk: float
    download: float | None
    available: float
    edits: list[Edit]
    too_long: dict[str, float]

    @property
    def row_limit(self) -> int:
        """The most tokens of a row."""
        return row_limit(self.job, self.model.context_length)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.available

    def record(self) -> dict[str, float]:
        """What the manifest of a run keeps, see `PlanRecord`."""
        return {
            "steps": self.workload.steps.total,
            "peak_memory_bytes": round(self.memory.peak),
            "training_seconds": round(self.duration.stages["train"], 1),
            "seconds": round(self.duration.total, 1),
        }


def make_plan(
    job: Job,
    hardware: TargetHardware,
    folder: Path | None = None,
    measure: Callable[[Job, Sequence[ExampleTokens], int], Rates] | None = None,
) -> Plan:
    """Plans a job.

    Args:
        folder: that of the base model, if it is known.
        measure: `calibration.measure_rates`, called with tokenized rows and the rows of a step; None for rates from the
            data sheet.

    Raises DataError for rows that cannot be read, ModelError for a base model that can neither be found here nor on
    the Hub.
    """
    folder, model, remote = _find_model(job, folder)
    counter = TokenCounter(job, folder)
    samples = sample_tasks(job, counter)
    needs = _Needs(folder, model, samples, counter.is_exact, hardware)
    workload = needs.workload(job)
    memory = plan_memory(job, model, workload, hardware)
    if measure is None:
        rates = estimate_rates(job, model, hardware)
    else:
        rows = [row for tokens in zip_longest(*(sample.tokens for sample in samples.values())) for row in tokens if row]
        rates = measure(job, rows, workload.rows_per_step)
    duration = estimate_duration(job, memory, workload, hardware, rates)
    available = hardware.memory * USABLE_FRACTION[hardware.device]
    edits = [] if memory.peak <= available else edits_that_fit(job, hardware, needs.outcome, available)
    return Plan(
        job,
        hardware,
        model,
        workload,
        memory,
        duration,
        _disk_bytes(job, model, memory),
        0 if remote is None else remote.download_bytes,
        available,
        edits,
        {name: share for name, share in needs.too_long(job).items() if share},
    )


@dataclass(frozen=True)
class _Needs:
    """What variants of a job need, on the same rows."""

    folder: Path
    model: ModelShape
    samples: dict[str, TaskSample]
    counts_tokens: bool
    hardware: TargetHardware
    workloads: dict[tuple[object, ...], Workload] = field(default_factory=dict)

    def workload(self, job: Job) -> Workload:
        limits = [job.max_sequence_length, *map(job.too_long, self.samples)]
        key = (*limits, job.trainer["batch_size"], effective_batch_size(job.trainer))
        if key not in self.workloads:
            context = self.model.context_length
            self.workloads[key] = measure_workload(job, self.samples, self.counts_tokens, context)
        return self.workloads[key]

    def outcome(self, job: Job) -> Outcome:
        """Raises ConfigError for modules that the model does not have."""
        if any(self.folder.glob("*.safetensors")):
            check_module_names(job, self.folder)
        workload = self.workload(job)
        peak = plan_memory(job, self.model, workload, self.hardware).peak
        return Outcome(peak, workload.longest, max(self.too_long(job).values()))

    def too_long(self, job: Job) -> dict[str, float]:
        return too_long_shares(job, self.samples, self.model.context_length)


def _find_model(job: Job, folder: Path | None) -> tuple[Path, ModelShape, RemoteModel | None]:
    folder = folder or local_folder(job.base_model)
    if folder is not None and any(folder.glob("*.safetensors")):
        return folder, ModelShape.from_folder(folder), None
    remote = find_remote_model(job.base_model)
    return remote.folder, remote.shape, remote


def _disk_bytes(job: Job, model: ModelShape, memory: MemoryPlan) -> float:
    """Checkpoints, the best weights and the tuned model. Completions and prepared rows are small beside them."""
    weights = 4 * memory.trainable_parameters
    return CHECKPOINTS * (weights + memory.training["optimizer state"]) + 2 * weights
