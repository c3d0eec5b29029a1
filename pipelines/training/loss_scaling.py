"""Loss scaling for fp16: small gradients would be 0 in fp16, so the loss is multiplied and gradients are divided.

The factor halves when a gradient overflows, whose step is skipped, and doubles after 2,000 steps without (Micikevicius
et al. 2018, "Mixed Precision Training"; torch.amp.GradScaler).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

MIN_SCALE = 1.0
"""A gradient that overflows at this factor is not finite without scaling either."""


class LossScaler:
    """torch's GradScaler as a part of a checkpoint. Without fp16 it changes nothing."""

    name = "loss_scaler"

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)

    @property
    def is_enabled(self) -> bool:
        return bool(self.scaler.is_enabled())

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the factor, for the backward pass."""
        return torch.as_tensor(self.scaler.scale(loss))

    def unscale_(self, optimizer: torch.optim.Optimizer, copies: Iterable[torch.Tensor] = ()) -> None:
        """Divides the gradients of the optimizer's weights, and `copies` of gradients, by the factor, in place."""
        if not self.is_enabled:
            return
        factor = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        for copy in copies:
            copy.div_(factor)

    def update(self) -> bool:
        """Adapts the factor after a step. Returns whether the step's gradients overflowed because of the factor."""
        if not self.is_enabled:
            return False
        before = self.scaler.get_scale()
        self.scaler.update()
        return bool(MIN_SCALE <= self.scaler.get_scale() < before)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scaler.load_state_dict(dict(state))
