"""Ludwig's optimizers, adapted to the installed packages and checked against this machine."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from ludwig.modules.optimization_modules import get_optimizer_class_and_kwargs as ludwig_class_and_kwargs

from pipelines.errors import MachineError


def optimizer_class_and_kwargs(config: Any, learning_rate: float) -> tuple[Any, dict[str, Any]]:
    """Returns an optimizer's class and arguments, without those that the class does not accept.

    Ludwig passes arguments that current versions of bitsandbytes have removed.
    """
    optimizer_class, kwargs = ludwig_class_and_kwargs(config, learning_rate)
    accepted = inspect.signature(optimizer_class).parameters
    return optimizer_class, {name: value for name, value in kwargs.items() if name in accepted}


def check_optimizer(config: Any) -> None:
    """Raises MachineError if this machine cannot run the optimizer. `config` is Ludwig's config of an optimizer."""
    if (config.is_8bit or config.is_paged) and not torch.cuda.is_available():
        raise MachineError(f"trainer.optimizer.type: {config.type} needs a GPU; use adamw on this machine")
