"""Loss scaling for fp16: small gradients would be 0 in fp16, so the loss is multiplied and gradients are divided.

The factor halves when a gradient overflows, whose step is skipped, and doubles after 2,000 steps without (Micikevicius
et al. 2018, "Mixed Precision Training"). torch.amp.GradScaler does the same with a factor on the device, which the host
must wait for in every step. Here the factor is a number of the host, which learns of an overflow together with the
loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from pipelines.modeling.deferred_scalars import DeferredScalar

INITIAL_SCALE = 2.0**16
STEPS_UNTIL_GROWTH = 2000
"""torch.amp.GradScaler's values."""
MIN_SCALE = 1.0
"""A gradient that overflows at this factor is not finite without scaling either."""


class LossScaler:
    """The factor and its adaptation, as a part of a checkpoint. If not `is_enabled` it changes nothing."""

    name = "loss_scaler"

    def __init__(self, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self.factor = INITIAL_SCALE
        self._steps_without_overflow = 0
        self._norm: DeferredScalar | None = None

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the factor, for the backward pass."""
        return loss * self.factor if self.is_enabled else loss

    def unscale_(self, weights: Sequence[torch.Tensor], copies: Iterable[torch.Tensor] = ()) -> None:
        """Divides the gradients of `weights`, and `copies` of gradients, by the factor, in place."""
        if not self.is_enabled:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_div_([*gradients, *copies], self.factor)  # exact: the factor is a power of two
        self._norm = DeferredScalar(torch.nn.utils.get_total_norm(gradients))

    def update(self) -> bool:
        """Adapts the factor after a step. Returns whether the step's gradients overflowed because of the factor."""
        if not self.is_enabled:
            return False
        assert self._norm is not None, "the gradients were not unscaled"
        has_overflowed = not math.isfinite(float(self._norm))
        self._norm = None
        if has_overflowed:
            self.factor /= 2
            self._steps_without_overflow = 0
            return self.factor >= MIN_SCALE
        self._steps_without_overflow += 1
        if self._steps_without_overflow == STEPS_UNTIL_GROWTH:
            self.factor *= 2
            self._steps_without_overflow = 0
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.factor, "_growth_tracker": self._steps_without_overflow} if self.is_enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state of this class or of torch.amp.GradScaler, which earlier checkpoints have."""
        if self.is_enabled:
            self.factor, self._steps_without_overflow = float(state["scale"]), int(state["_growth_tracker"])
