"""Which device, precision and attention this process uses, and why. Every other module asks here.

Precision is chosen by what the device computes natively. A T4 emulates bf16, so it uses fp16 with scaled losses.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipelines.config.hardware import HardwareSettings
from pipelines.errors import MachineError
from pipelines.modeling.gpu_driver import driver_version, has_visible_gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CONFIGURED = "the config says so"
ALLOCATOR_SETTINGS = "expandable_segments:True"
"""Keeps memory from fragmenting when the sizes of micro-batches vary."""

if "PYTORCH_ALLOC_CONF" not in os.environ:  # torch reads either when CUDA is initialized
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR_SETTINGS)


@dataclass(frozen=True)
class Hardware:
    """The choice for this process.

    Attributes:
        device: where models are.
        dtype: of matrix products, and of weights that are not trained.
        attention: the attention path that the config requires; None if the trial at load time decides.
        reason: why this device and dtype, as one clause.
        warning: why a GPU of the machine is not used; None if there is none.
        inference_engine: auto, torch or vllm: what generates completions, see `evaluation.vllm_decoding`.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str | None = None
    reason: str = ""
    warning: str | None = None
    inference_engine: str = "auto"

    @property
    def scales_loss(self) -> bool:
        """Whether training multiplies the loss so that small gradients are not 0 in fp16."""
        return self.dtype == torch.float16

    @property
    def is_half(self) -> bool:
        return self.dtype != torch.float32

    def summary(self) -> str:
        """One line for the log."""
        gpu = self.describe()["gpu"]
        return f"{self.device.type}{f' ({gpu})' if gpu else ''}, {DTYPE_NAMES[self.dtype]}: {self.reason}"

    def describe(self) -> dict[str, Any]:
        """The choice and the properties of the GPU, for manifests and reports. Memory in GiB."""
        description: dict[str, Any] = {
            "device": self.device.type,
            "dtype": DTYPE_NAMES[self.dtype],
            "reason": self.reason,
            "warning": self.warning,
            "inference_engine": self.inference_engine,
            "gpu": None,
        }
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            description |= {
                "gpu": properties.name,
                "gpu_count": torch.cuda.device_count(),
                "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
                "driver": driver_version(),
            }
        return description


_current: Hardware | None = None
_fp32_reason: str | None = None
"""Why this process uses fp32 instead of fp16, once a model has overflowed."""
_given_warnings: set[str] = set()
"""Warnings of `Hardware.warning` that this process has given."""


def current_hardware() -> Hardware:
    """The choice for this process: what `configure_hardware` has set, else what the machine offers."""
    if _current is None:
        return configure_hardware(HardwareSettings())
    return _current


def configure_hardware(settings: HardwareSettings) -> Hardware:
    """Chooses for this process, and logs a warning of a GPU that is not used, once. Every model is loaded after it.

    Raises MachineError if the machine does not have what `settings` require.
    """
    global _current
    _current = detect_hardware(settings)
    if _current.warning is not None and _current.warning not in _given_warnings:
        _given_warnings.add(_current.warning)
        logging.getLogger(__name__).warning(_current.warning)
    if _current.device.type == "cuda":
        # fp32 products (validation of fp32 weights, importance passes) on the matrix units, in TF32.
        torch.set_float32_matmul_precision("high")
    return _current


def use_fp32(reason: str) -> None:
    """Makes this process use fp32 from now on. Raises MachineError if the config requires fp16."""
    global _current, _fp32_reason
    if current_hardware().reason == CONFIGURED:
        raise MachineError(f"pipeline.hardware.dtype: fp16: {reason}; use dtype: auto or fp32")
    _fp32_reason = reason
    _current = replace(current_hardware(), dtype=torch.float32, reason=reason)
    logging.getLogger(__name__).warning(f"{reason}, so it runs in fp32")


@contextlib.contextmanager
def main_memory() -> Iterator[None]:
    """Keeps models off the GPU within the block: they are loaded into main memory and computed by the CPU.

    The dtype stays that of the hardware. On a machine without a GPU nothing changes.
    """
    global _current
    previous = current_hardware()
    if previous.device.type == "cpu":
        yield
        return
    _current = replace(previous, device=torch.device("cpu"), attention=None, reason="kept off the GPU")
    try:
        yield
    finally:
        _current = previous


def detect_hardware(settings: HardwareSettings) -> Hardware:
    """The device and dtype for `settings` on this machine. Raises MachineError."""
    cuda_problem = cuda_error()
    available = {
        "cuda": cuda_problem is None,
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name: str = settings.device
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if not available[name]:
        problem = cuda_problem if name == "cuda" else f"torch {torch.__version__} finds no {name} device"
        raise MachineError(f"pipeline.hardware.device: {name}: {problem}; use device: auto")
    device = torch.device(name)
    if (module := memory_statistics(device)) is not None:  # of a type of which there may be several
        device = torch.device(name, module.current_device())
    dtype, reason = _native_dtype(device)
    if settings.dtype == "auto" and dtype == torch.float16 and _fp32_reason is not None:
        dtype, reason = torch.float32, _fp32_reason
    if settings.dtype != "auto":
        dtype, reason = DTYPES[settings.dtype], CONFIGURED
        _check_dtype(device, dtype)
    has_unused_gpu = name != "cuda" and settings.device == "auto" and has_visible_gpu()
    return Hardware(
        device,
        dtype,
        None if settings.attention == "auto" else settings.attention,
        reason,
        f"the GPU is not used: {cuda_problem}" if has_unused_gpu else None,
        settings.inference_engine,
    )


@functools.cache  # torch warns about the driver once per process
def cuda_error() -> str | None:
    """Why torch cannot use a CUDA GPU here; None if it can."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
        if caught:
            # torch's own words about the driver, such as "The NVIDIA driver on your system is too old (found ...)".
            return f"{str(caught[0].message).split('. ')[0].strip()}; torch {torch.__version__} needs a newer driver"
        return f"torch {torch.__version__} finds no CUDA GPU"
    major, minor = torch.cuda.get_device_capability()
    compiled = [arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    numbers = [int("".join(character for character in arch if character.isdigit())) for arch in compiled]
    # Code for x.y runs on x.z with z >= y. The driver compiles PTX, which torch has for its newest architecture, for
    # later ones.
    runs = any(number // 10 == major and number % 10 <= minor for number in numbers)
    if numbers and not runs and major * 10 + minor < max(numbers):
        lowest = min(numbers)
        return (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; torch {torch.__version__} has "
            f"kernels from {lowest // 10}.{lowest % 10} on"
        )
    return None


def _native_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes bf16 natively"
        return torch.float16, "the GPU has no native bf16"
    if device.type == "xpu":
        return torch.bfloat16, "XPUs compute bf16 natively"
    return torch.float32, "the CPU computes fp32" if device.type == "cpu" else "fp32 is exact on every Apple GPU"


def _check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cuda" and dtype == torch.bfloat16 and _native_dtype(device)[0] != torch.bfloat16:
        raise MachineError("pipeline.hardware.dtype: bf16: this GPU only emulates bf16; use dtype: fp16 or auto")


def empty_cache(device: torch.device) -> None:
    """Gives memory that torch holds unused back to the device."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def rng_state() -> dict[str, torch.Tensor]:
    """The states of torch's random number generators: `cpu`, and that of the device, by its type."""
    device, state = current_hardware().device, {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Sets the generators to a state that `rng_state` has returned, on this device or one of another type."""
    torch.set_rng_state(state["cpu"])
    device = current_hardware().device
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


def memory_statistics(device: torch.device) -> Any | None:
    """torch's module that counts the memory of `device`, such as `torch.cuda`; None if its memory is not counted."""
    return torch.get_device_module(device) if device.type in ("cuda", "xpu") else None


def reset_peak_memory() -> None:
    """Starts the measurement of `peak_memory`. The peak of a process on a CPU cannot be reset."""
    device = current_hardware().device
    if (statistics := memory_statistics(device)) is not None:
        statistics.reset_peak_memory_stats(device)


def peak_memory() -> int:
    """The bytes allocated on the GPU at the peak; on a CPU or MPS the peak memory of this process."""
    device = current_hardware().device
    if (statistics := memory_statistics(device)) is not None:
        return int(statistics.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
