"""Scalars that are read from a GPU together: losses, norms and other numbers of a training step.

To read one, the host waits until the GPU has done everything that was queued before, and the GPU is idle until the host
queues more. A step therefore keeps its scalars on the device and reads all of them in one copy.
"""

from __future__ import annotations

import weakref

import torch

_unread: weakref.WeakSet[DeferredScalar] = weakref.WeakSet()
"""The scalars on a device other than the CPU that have not been read."""


class DeferredScalar:
    """The value of an fp32 tensor with one element, which stays on its device until `float` is called.

    The first call of `float` on any of them reads every one on that device. The tensor must not change in between.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()
        self._value: float | None = None
        if self._tensor.device.type != "cpu":
            _unread.add(self)

    def __float__(self) -> float:
        if self._value is None:
            _read(self)
        assert self._value is not None
        return self._value


def _read(wanted: DeferredScalar) -> None:
    device = wanted._tensor.device
    if device.type == "cpu":
        wanted._value = float(wanted._tensor)
        return
    scalars = [scalar for scalar in _unread if scalar._tensor.device == device]
    values = torch.stack([scalar._tensor.float().reshape(()) for scalar in scalars]).tolist()
    for scalar, value in zip(scalars, values, strict=True):
        scalar._value = value
        _unread.discard(scalar)
