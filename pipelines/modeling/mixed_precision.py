"""Mixed precision: the dtype in which a device computes the products of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The half-precision dtype of a training on `device`: bf16 on a GPU that supports it, None (fp32) elsewhere."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


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
