"""Copies of arrays to the device, for which the host does not wait; and fp64, which not every device has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

NON_BLOCKING_DEVICES = {"cuda"}
"""The device types to which a copy from pinned memory is asynchronous: it joins the queue of the current stream."""
FP64_DEVICES = {"cpu", "cuda"}
"""The device types that compute in fp64. Apple's GPUs do not, nor do some of Intel's."""


def to_fp64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp64, on the CPU if its device has no fp64."""
    return (tensor if tensor.device.type in FP64_DEVICES else tensor.cpu()).double()


def tensor_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The CPU tensor on `device`. The copy to a GPU is queued; torch keeps the pinned memory until it is done."""
    if device.type not in NON_BLOCKING_DEVICES:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def copy_to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on `device`."""
    return tensor_to_device(torch.from_numpy(array), device)


def copy_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays of one dtype and one dimension each as tensors on `device`, in one copy; on a CPU without a copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return list(copy_to_device(np.concatenate(arrays), device).split([len(array) for array in arrays]))
