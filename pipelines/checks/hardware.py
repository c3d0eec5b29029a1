"""Whether this machine has what `pipeline.hardware` requires, and whether its GPU can be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.config.job import Job
from pipelines.errors import MachineError, Problem
from pipelines.modeling.gpu_driver import has_visible_gpu
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from pipelines.modeling import hardware
else:
    hardware = lazy_import("pipelines.modeling.hardware")  # torch: seconds that a machine without a GPU does not need


def check_hardware(job: Job) -> list[Problem]:
    """Returns a warning if the machine has a GPU that torch cannot use; raises MachineError if the config requires it.

    torch is imported only where there is a GPU, or where the config names another device than the CPU.
    """
    device = job.pipeline.hardware.device
    if device == "cpu" or (device == "auto" and not has_visible_gpu()):
        return []
    with locate_hardware_errors(job):
        warning = hardware.detect_hardware(job.pipeline.hardware).warning
    return [] if warning is None else [Problem(warning)]


def configure_hardware(job: Job) -> hardware.Hardware:
    """Chooses the hardware of this process for a job, see `hardware.configure_hardware`. Raises MachineError, with the
    line of the config's key if that requires what the machine does not have."""
    with locate_hardware_errors(job):
        return hardware.configure_hardware(job.pipeline.hardware)


@contextlib.contextmanager
def locate_hardware_errors(job: Job) -> Iterator[None]:
    """Adds the line of the config's key to a MachineError about the choice of the hardware, raised in the block."""
    try:
        yield
    except MachineError as error:
        key = next(
            (
                key
                for key in ("device", "dtype", "inference_engine")
                if str(error).startswith(f"pipeline.hardware.{key}:")
            ),
            None,
        )
        if key is None:
            raise
        raise MachineError(job.problem(str(error), "pipeline", "hardware", key)) from None
