"""The hardware that a plan is for: this machine's, or a GPU by its name."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

from pipelines.config.hardware import HardwareSettings
from pipelines.planning.gpus import CARDS, DType, find_card, similar_card
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from pipelines.modeling import hardware as hardware_module
else:
    hardware_module = lazy_import(
        "pipelines.modeling.hardware"
    )  # torch: 3 s that a machine without a GPU does not need


@dataclass(frozen=True)
class TargetHardware:
    """What a plan needs to know of a device.

    Attributes:
        memory: bytes of the device's memory; of a CPU, what is free now and what this process would have.
        flops: dense products in `dtype` at the data sheet's peak, in operations per second.
        bandwidth: of the memory, in bytes per second.
        is_here: whether it is this machine.
    """

    name: str
    device: Literal["cpu", "cuda", "mps"]
    memory: int
    flops: float
    bandwidth: float
    dtype: DType
    is_here: bool = False

    @property
    def bytes_per_value(self) -> int:
        """The size of an activation or a frozen weight."""
        return 4 if self.dtype == "fp32" else 2


_GIB, _TERA, _GIGA = 2**30, 1e12, 1e9
CPU_FLOPS_PER_CORE = 100 * _GIGA
"""fp32 products of one core with AVX-512; without it about half. The reason for `--calibrate`."""
CPU_BANDWIDTH = 30 * _GIGA
GPUS: dict[str, TargetHardware] = {
    card.key: TargetHardware(
        card.name, "cuda", int(card.memory * _GIB), card.tflops * _TERA, card.bandwidth * _GIGA, card.dtype
    )
    for card in CARDS
}


def find_hardware(gpu: str | None, settings: HardwareSettings) -> TargetHardware:
    """The GPU of that name, else what this machine has. Raises RunError for a name that is unknown or ambiguous."""
    if gpu is None:
        return _this_machine(settings)
    return _with_dtype(GPUS[find_card(gpu).key], settings)


def _this_machine(settings: HardwareSettings) -> TargetHardware:
    gpu = None if settings.device in ("cpu", "mps") else _nvidia_gpu()
    if gpu is not None and hardware_module.cuda_error() is None:
        return _with_dtype(gpu, settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available
    name = f"this machine's CPU ({cores} cores)"
    return TargetHardware(name, "cpu", memory, cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, "fp32", is_here=True)


def _with_dtype(hardware: TargetHardware, settings: HardwareSettings) -> TargetHardware:
    if settings.dtype in ("auto", hardware.dtype):
        return hardware
    factor = 1.0 if settings.dtype != "fp32" else 0.125
    values = {**vars(hardware), "dtype": settings.dtype, "flops": hardware.flops * factor}
    return TargetHardware(**values)


def _nvidia_gpu() -> TargetHardware | None:
    """The first GPU that the driver lists, whether or not torch can use it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        name, memory, capability = (part.strip() for part in output.splitlines()[0].split(","))
        size = int(float(memory) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    similar = GPUS[similar_card(name, size / _GIB).key]
    dtype: DType = "bf16" if float(capability) >= 8 else "fp16"
    return TargetHardware(name, "cuda", size, similar.flops, similar.bandwidth, dtype, is_here=True)
