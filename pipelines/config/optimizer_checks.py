"""Checks of `trainer.optimizer`: settings with which an optimizer cannot run, or which it ignores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.config.messages import KeyPath

Conflict = tuple[str, KeyPath]
"""A message, and the key that it is about."""

OPTIMIZER = ("trainer", "optimizer")

_PREFIXES = ("lamb", "lars", "lion", "paged_")
"""Prefixes of bitsandbytes' optimizers, besides those whose names end in 8bit."""

_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "sgd_8bit": ("dampening", "nesterov"),
    "adam_8bit": ("amsgrad",),
    "adamw_8bit": ("amsgrad",),
    "paged_adam": ("amsgrad",),
    "paged_adam_8bit": ("amsgrad",),
    "paged_adamw": ("amsgrad",),
    "paged_adamw_8bit": ("amsgrad",),
    "adagrad_8bit": ("initial_accumulator_value", "lr_decay"),
    "rmsprop_8bit": ("momentum", "centered"),
    "lamb": ("bias_correction", "amsgrad", "adam_w_mode"),
    "lars": ("dampening", "nesterov"),
}
"""Settings in Ludwig's schema that bitsandbytes ignores or refuses, by optimizer."""


def optimizer_type(trainer: Any) -> str:
    """The name of the optimizer of a section `trainer` that need not be valid."""
    optimizer = trainer.get("optimizer") if isinstance(trainer, Mapping) else None
    name = optimizer.get("type", "adamw") if isinstance(optimizer, Mapping) else "adamw"
    return name if isinstance(name, str) else "adamw"


def is_from_bitsandbytes(name: str) -> bool:
    return name.endswith("8bit") or name.startswith(_PREFIXES)


def optimizer_conflicts(trainer: Mapping[str, Any]) -> Iterator[Conflict]:
    """Settings that do not fit the optimizer of the section `trainer`."""
    settings, name = trainer.get("optimizer"), optimizer_type(trainer)
    if not isinstance(settings, Mapping):
        return
    for key in _WITHOUT_EFFECT.get(name, ()):
        if settings.get(key):
            message = f"trainer.optimizer.{key} has no effect on {name}: bitsandbytes does not compute it; remove it"
            yield message, (*OPTIMIZER, key)
    if name == "sgd_8bit" and not settings.get("momentum"):
        message = "trainer.optimizer: sgd_8bit keeps the momentum in 8 bits and requires it; write momentum: 0.9"
        yield message, (*OPTIMIZER, "momentum")
    if name == "rmsprop_8bit" and settings.get("alpha") == 0:
        yield "trainer.optimizer.alpha must be greater than 0 for rmsprop_8bit", (*OPTIMIZER, "alpha")
    if name == "sgd" and settings.get("nesterov") and (not settings.get("momentum") or settings.get("dampening")):
        message = "trainer.optimizer.nesterov requires momentum and no dampening; write momentum: 0.9"
        yield message, (*OPTIMIZER, "nesterov")
    if name in ("adam_8bit", "paged_adam", "paged_adam_8bit") and settings.get("weight_decay"):
        decoupled = name.replace("adam", "adamw")
        message = (
            f"trainer.optimizer.weight_decay: bitsandbytes decouples it from the gradient in {name} as well; write "
            f"type: {decoupled}, which means that"
        )
        yield message, (*OPTIMIZER, "weight_decay")


def trust_ratio_conflicts(trainer: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> Iterator[Conflict]:
    """An optimizer whose step is proportional to the norm of a matrix never moves one that starts at 0.

    `adapter` is that section of the config, None without one.
    """
    name = optimizer_type(trainer)
    if adapter is None or name not in ("lamb", "lars"):
        return
    if adapter.get("type") != "ia3" and adapter.get("init_lora_weights") not in ("pissa", "olora", False):
        message = (
            f"trainer.optimizer.type: {name} scales the step of a matrix by its norm, and the second matrix of an "
            "adapter starts at 0, so nothing would be trained; write adamw"
        )
        yield message, (*OPTIMIZER, "type")
