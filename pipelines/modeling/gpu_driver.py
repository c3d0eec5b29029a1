"""Whether the machine has an NVIDIA GPU, read from the driver's files: without torch, whose import takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
"""Exists where an NVIDIA driver is loaded, whether or not torch can use it."""
WSL_DRIVER_DEVICE = Path("/dev/dxg")
"""Exists where Windows lends its GPU to WSL 2."""


def has_visible_gpu() -> bool:
    """Whether there is a GPU that CUDA_VISIBLE_DEVICES does not hide, usable or not."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return not is_hidden and (DRIVER_VERSION_FILE.exists() or WSL_DRIVER_DEVICE.exists())


def driver_version() -> str | None:
    """The version of the NVIDIA driver; None if there is none."""
    try:
        words = DRIVER_VERSION_FILE.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.replace(".", "").isdigit() and "." in word), None)
