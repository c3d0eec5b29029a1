"""Times the steps of any trainer: seconds, peak memory, kernels launched and host waits of one step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.config.job import Job
from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.gpu_acceptance.workloads import Workload

LAUNCHES = ("LaunchKernel", "GraphLaunch")
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize")


class StepClock:
    """Called after every step. The device is waited for at both ends of the measurement only."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.steps, self.is_gpu = workload, 0, torch.cuda.is_available()
        self.measurements: dict[str, Any] = {}
        self._profile: Any = None

    def after_step(self) -> None:
        self.steps += 1
        if self.steps == self.workload.warmup:
            self._synchronize()
            if self.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            self._started = time.perf_counter()
        elif self.steps == self.workload.warmup + self.workload.measured:
            self._synchronize()
            self.measurements["seconds"] = (time.perf_counter() - self._started) / self.workload.measured
            if self.is_gpu:
                self.measurements["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
                self._profile.start()
        elif self._profile is not None:
            self._stop_profile()

    @property
    def is_done(self) -> bool:
        """Whether the measurement is complete."""
        return self.steps > self.workload.warmup + self.workload.measured

    def _synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def _stop_profile(self) -> None:
        running, self._profile = self._profile, None
        torch.cuda.synchronize()
        running.stop()
        events = running.key_averages()
        for name, keys in (("launches", LAUNCHES), ("waits", WAITS)):
            self.measurements[name] = sum(event.count for event in events if any(key in event.key for key in keys))
        self.measurements["waits"] -= 1  # the one above
        kernels = [event for event in events if event.self_device_time_total > 0 and event.key not in ("", "cuda")]
        device_events = [event for event in kernels if str(event.device_type).endswith("CUDA")]
        device_events.sort(key=lambda event: -event.self_device_time_total)
        self.measurements["kernel_ms"] = sum(event.self_device_time_total for event in device_events) / 1e3
        self.measurements["top_kernels"] = [
            f"{event.self_device_time_total / 1e3:.2f} ms x{event.count} {event.key[:70]}"
            for event in device_events[:8]
        ]


def train_until_measured(job: Job, run: Run, model: Path, clock: StepClock) -> float | None:
    """Trains until `clock` has what it measures, without checkpoint and export. Returns the last step's loss."""
    losses: list[float] = []

    def after_step(done: int, total: int, loss: float | None) -> None:
        if loss is not None:
            losses.append(loss)
            clock.after_step()
        if clock.is_done:
            raise KeyboardInterrupt  # what a user's Ctrl-C raises: the training ends without a traceback or an export

    with contextlib.suppress(KeyboardInterrupt), _no_disk_needed():
        train(job, run, model, after_step)
    return losses[-1] if losses else None


@contextlib.contextmanager
def _no_disk_needed() -> Iterator[None]:
    """Trains although the disk has no space for checkpoints (74 GB for all weights of 1.5B): none is written here."""
    from pipelines.training import callback  # Ludwig: 10 s that the other engines do not need

    check_disk = callback.check_disk
    callback.check_disk = lambda model, folder: None
    try:
        yield
    finally:
        callback.check_disk = check_disk
