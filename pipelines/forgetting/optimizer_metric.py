"""The diagonal metric D of an optimizer: where its gradient g is constant, it moves a parameter by −η g / D.

A proximal step in this metric balances the optimizer's step where gradient and penalty cancel, see
`pipelines.forgetting.penalty.ProximalQuadraticPenalty`. D of each optimizer follows from its update rule in torch's
documentation. Momentum β sums 1 / (1 − β) times a constant gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import bitsandbytes.functional as bitsandbytes
else:
    bitsandbytes = lazy_import("bitsandbytes.functional")  # optional package

BLOCK_SIZE = 256
"""Entries of an 8-bit state that share a scale; bitsandbytes has no constant for it."""

Values = Mapping[str, Any]


def divided_by_metric(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, group: Values, numerator: float
) -> torch.Tensor:
    """Returns numerator / D as a new tensor of the parameter's shape, after a step of the optimizer.

    `group` is the parameter's group. Raises TypeError for an optimizer without a diagonal metric.
    """
    # bitsandbytes has one class for many names; the kernel's name tells the update rule.
    name = getattr(optimizer, "optimizer_name", type(optimizer).__name__)
    if name not in _METRICS:
        raise TypeError(f"{name} has no diagonal metric")
    state = optimizer.state[parameter]
    metric = 1.0 if not state and not name.startswith("SGD") else _METRICS[name](state, group)
    if isinstance(metric, torch.Tensor):
        return metric.reciprocal_().mul_(numerator)
    return torch.full_like(parameter, numerator if metric == 1.0 else numerator / metric)


def _step(state: Values) -> Any:
    """The number of steps; that of a fused optimizer stays on the device, since reading it would be a wait."""
    step = state["step"]
    return float(step) if not isinstance(step, torch.Tensor) or step.device.type == "cpu" else step


def _adam(state: Values, group: Values) -> torch.Tensor:
    """√v̂ + ε."""
    second_moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    metric: torch.Tensor = (second_moment / (1 - group["betas"][1] ** _step(state))).sqrt_().add_(group["eps"])
    return metric


def _radam(state: Values, group: Values) -> torch.Tensor | float:
    """(√v̂ + ε) / r with the rectification r; 1 in the first steps, which are not divided."""
    step, beta2 = float(state["step"]), group["betas"][1]
    length_limit = 2 / (1 - beta2) - 1
    length = length_limit - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return 1.0
    rectification = (length - 4) * (length - 2) * length_limit / ((length_limit - 4) * (length_limit - 2) * length)
    return _adam(state, group).div_(rectification**0.5)


def _adamax(state: Values, group: Values) -> torch.Tensor:
    metric: torch.Tensor = state["exp_inf"].clone()
    return metric


def _adadelta(state: Values, group: Values) -> torch.Tensor:
    """√(v + ε) / √(u + ε) with the moving mean u of the squared updates."""
    metric: torch.Tensor = (state["square_avg"] + group["eps"]).sqrt_()
    return metric.div_((state["acc_delta"] + group["eps"]).sqrt_())


def _adagrad(state: Values, group: Values) -> torch.Tensor:
    decay = 1 + (_step(state) - 1) * group["lr_decay"]
    metric: torch.Tensor = state["sum"].sqrt().add_(group["eps"]).mul_(decay)
    return metric


def _rmsprop(state: Values, group: Values) -> torch.Tensor:
    variance = state["square_avg"]
    if group["centered"]:
        variance = torch.addcmul(variance, state["grad_avg"], state["grad_avg"], value=-1)
    metric: torch.Tensor = variance.sqrt().add_(group["eps"]).mul_(1 - group["momentum"])
    return metric


def _sgd(state: Values, group: Values) -> float:
    momentum = float(group["momentum"])
    if not momentum:
        return 1.0
    return (1 - momentum) / max(1 - float(group["dampening"]), torch.finfo(torch.float32).tiny)


def _bitsandbytes_adam(state: Values, group: Values) -> torch.Tensor:
    return _moment(state, "2").div_(1 - group["betas"][1] ** state["step"]).sqrt_().add_(group["eps"])


def _bitsandbytes_without_momentum(state: Values, group: Values) -> torch.Tensor:
    return _moment(state, "1").sqrt_().add_(group["eps"])


def _moment(state: Values, number: str) -> torch.Tensor:
    """A copy of one of bitsandbytes' two states in fp32."""
    values: torch.Tensor = state[f"state{number}"]
    if values.dtype != torch.uint8:
        return values.float().clone()
    absmax, code = state[f"absmax{number}"], state[f"qmap{number}"]
    dequantized: torch.Tensor = bitsandbytes.dequantize_blockwise(
        values, absmax=absmax, code=code, blocksize=BLOCK_SIZE
    )
    return dequantized


_METRICS: dict[str, Callable[[Values, Values], torch.Tensor | float]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
    "NAdam": _adam,
    "RAdam": _radam,
    "Adamax": _adamax,
    "Adadelta": _adadelta,
    "Adagrad": _adagrad,
    "RMSprop": _rmsprop,
    "adam": _bitsandbytes_adam,
    "momentum": lambda state, group: 1 - float(group["betas"][0]),
    "rmsprop": _bitsandbytes_without_momentum,
    "adagrad": _bitsandbytes_without_momentum,
}
"""By the name of torch's class, or of bitsandbytes' kernel."""
