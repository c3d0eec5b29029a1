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


FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
"""The optimizers of which torch has a version with one kernel for many parameters."""
FUSED_DEVICES = {"cuda"}
"""The device types on which it is used. On a CPU torch's default stays: results are bitwise those of earlier runs."""


def use_fused_step(optimizer: torch.optim.Optimizer) -> None:
    """Makes one of torch's optimizers update its parameters with fused kernels if they are on a GPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    is_on_gpu = all(parameter.device.type in FUSED_DEVICES for parameter in trained)
    if type(optimizer) in FUSED_OPTIMIZERS and is_on_gpu and all(map(torch.is_floating_point, trained)):
        for group in optimizer.param_groups:
            group |= {"fused": True, "foreach": False}
        # As the constructor does for `fused=True`: GradScaler passes its scale on instead of waiting for the device.
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
