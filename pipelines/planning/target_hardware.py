"""The hardware that a plan is for: this machine's, or a GPU by its name."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

from pipelines.config.hardware import HardwareSettings
from pipelines.config.messages import did_you_mean
from pipelines.errors import RunError
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from pipelines.modeling import hardware as hardware_module
else:
    hardware_module = lazy_import(
        "pipelines.modeling.hardware"
    )  # torch: 3 s that a machine without a GPU does not need

DType = Literal["bf16", "fp16", "fp32"]


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
GPUS: dict[str, TargetHardware] = {
    key: TargetHardware(
        name, "cuda", int(memory * _GIB), tflops * _TERA, bandwidth * _GIGA, "bf16" if dtype == "bf16" else "fp16"
    )
    for key, name, memory, tflops, bandwidth, dtype in (
        # NVIDIA's data sheets: dense tensor-core TFLOP/s in the dtype, GB/s. Memory as torch reports it.
        ("t4", "NVIDIA T4", 14.6, 65, 320, "fp16"),
        ("p100", "NVIDIA P100", 15.9, 19, 732, "fp16"),
        ("v100", "NVIDIA V100 16 GB", 15.8, 112, 900, "fp16"),
        ("v100-32", "NVIDIA V100 32 GB", 31.7, 112, 900, "fp16"),
        ("l4", "NVIDIA L4", 22.0, 121, 300, "bf16"),
        ("a10", "NVIDIA A10", 22.0, 125, 600, "bf16"),
        ("a10g", "NVIDIA A10G", 22.0, 70, 600, "bf16"),
        ("a40", "NVIDIA A40", 44.4, 150, 696, "bf16"),
        ("a6000", "NVIDIA RTX A6000", 47.4, 155, 768, "bf16"),
        ("l40s", "NVIDIA L40S", 44.4, 362, 864, "bf16"),
        ("a100-40", "NVIDIA A100 40 GB", 39.4, 312, 1555, "bf16"),
        ("a100-80", "NVIDIA A100 80 GB", 79.1, 312, 2039, "bf16"),
        ("h100", "NVIDIA H100 80 GB", 79.1, 989, 3350, "bf16"),
        ("h200", "NVIDIA H200", 139.8, 989, 4800, "bf16"),
        ("b200", "NVIDIA B200", 178.0, 2250, 8000, "bf16"),
        ("rtx3060", "NVIDIA RTX 3060", 11.6, 51, 360, "bf16"),
        ("rtx3090", "NVIDIA RTX 3090", 23.6, 71, 936, "bf16"),
        ("rtx4060ti-16", "NVIDIA RTX 4060 Ti 16 GB", 15.6, 88, 288, "bf16"),
        ("rtx4080", "NVIDIA RTX 4080", 15.7, 195, 717, "bf16"),
        ("rtx4090", "NVIDIA RTX 4090", 23.5, 165, 1008, "bf16"),
        ("rtx5090", "NVIDIA RTX 5090", 31.4, 210, 1792, "bf16"),
    )
}
SYNONYMS = {"a100": "a100-40", "a100-80gb": "a100-80", "a100-40gb": "a100-40", "colab": "t4", "kaggle": "t4"}
CPU_FLOPS_PER_CORE = 100 * _GIGA
"""fp32 products of one core with AVX-512; without it about half. The reason for `--calibrate`."""
CPU_BANDWIDTH = 30 * _GIGA


def find_hardware(gpu: str | None, settings: HardwareSettings) -> TargetHardware:
    """The GPU of that name, else what this machine has. Raises RunError for a name that is unknown."""
    if gpu is None:
        return _this_machine(settings)
    name = re.sub(r"^(nvidia|geforce)[ _-]*", "", gpu.strip().lower()).replace(" ", "-").replace("rtx-", "rtx")
    name = SYNONYMS.get(name, name)
    if name not in GPUS:
        close = did_you_mean(name, GPUS)
        raise RunError(f"--gpu {gpu}: unknown; {f'did you mean {close}? ' if close else ''}known are {', '.join(GPUS)}")
    return _with_dtype(GPUS[name], settings)


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
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    known = [gpu for key, gpu in GPUS.items() if re.sub(r"[^a-z0-9]", "", key.split("-")[0]) in words]
    similar = min(known or GPUS.values(), key=lambda gpu: abs(gpu.memory - size))
    dtype: DType = "bf16" if float(capability) >= 8 else "fp16"
    return TargetHardware(name, "cuda", size, similar.flops, similar.bandwidth, dtype, is_here=True)
