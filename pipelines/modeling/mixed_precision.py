"""Mixed precision: the dtype in which a device computes the products of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipelines.modeling.hardware import current_hardware


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The half-precision dtype of matrix products on `device`: that of the hardware policy, None for fp32."""
    hardware = current_hardware()
    return hardware.dtype if hardware.is_half and device.type == hardware.device.type else None


@contextlib.contextmanager
def autocast(device: torch.device | str) -> Iterator[None]:
    """torch.autocast in `autocast_dtype`; fp32 where that is None."""
    device = torch.device(device)
    dtype = autocast_dtype(device)
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield
