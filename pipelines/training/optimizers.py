"""Ludwig's optimisers, as far as this machine and the installed packages have them, and what they are to train."""

from __future__ import annotations

import inspect
import re
from typing import Any

import ludwig.modules.optimization_modules as ludwig_optimizers
import torch

from pipelines.errors import ConfigError, MachineError


def register() -> None:
    """Ludwig hands its optimisers settings that bitsandbytes has since taken out, and none of those could be made."""
    settings_of = ludwig_optimizers.get_optimizer_class_and_kwargs

    def known_settings(config: Any, learning_rate: float) -> tuple[Any, dict[str, Any]]:
        kind, settings = settings_of(config, learning_rate)
        known = inspect.signature(kind).parameters
        return kind, {key: value for key, value in settings.items() if key in known}

    if settings_of.__name__ != known_settings.__name__:
        ludwig_optimizers.get_optimizer_class_and_kwargs = known_settings


def check_optimizer(config: Any) -> None:
    """Raises MachineError for an optimiser that this machine cannot run. `config`: Ludwig's, of one optimiser."""
    if (config.is_8bit or config.is_paged) and not torch.cuda.is_available():
        raise MachineError(f"trainer.optimizer.type: {config.type} needs a GPU; write adamw for this machine")


def check_freezing(model: torch.nn.Module, regex: str) -> None:
    """Raises ConfigError unless `trainer.layers_to_freeze_regex` freezes some of the weights that are trained, and not all."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    frozen = [name for name in names if re.search(regex, name)]
    if not frozen:
        raise ConfigError(
            f"trainer.layers_to_freeze_regex: {regex!r} matches no weight that is trained, such as {names[0]}"
        )
    if len(frozen) == len(names):
        raise ConfigError(f"trainer.layers_to_freeze_regex: {regex!r} matches every weight that is trained; leave some")
