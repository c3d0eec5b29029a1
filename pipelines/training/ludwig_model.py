"""Ludwig's LLM class with another way to load the base model, checks of the adapter, and another way to save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ludwig.globals import MODEL_WEIGHTS_FILE_NAME
from ludwig.models.llm import LLM
from transformers import PreTrainedModel

from pipelines.errors import ConfigError
from pipelines.modeling.adapters import (
    check_adapter_names,
    check_freeze_regex,
    disabled_adapter_is_base,
    initial_adapter_is_base,
    initial_adapter_weights,
    optimize_adapter,
    peft_errors_as_config_error,
    save_adapter,
)
from pipelines.modeling.equivalence import probe_losses
from pipelines.modeling.loading import load_causal_lm, neutral_generation_config
from pipelines.modeling.module_names import tied_target_message
from pipelines.storage.files import atomic_dir


def load_base_model(config: Any, model_config: Any = None, weights_save_path: str | None = None) -> PreTrainedModel:
    """Loads the base model of Ludwig's `config`, or the model in the folder `weights_save_path`.

    `pipelines.training.ludwig_registry` replaces `load_pretrained_from_config` by this function. Ludwig's loads fp32
    weights with the default attention.
    """
    folder = weights_save_path or config.base_model
    # Without Ludwig's defaults: what the YAML does not set depends on the hardware.
    quantization = config.quantization and config.quantization.model_dump(exclude_unset=True)
    return load_causal_lm(folder, allow_half_precision=config.adapter is not None, quantization=quantization)


class FineTunedLLM(LLM):
    """Ludwig's LLM with checks of the adapter and of frozen layers, and with `probe_losses` of the saved model."""

    starts_at_base = True
    """Whether the model with its initial adapter is equal to the base."""
    initial_adapter_weights: Mapping[str, torch.Tensor] = {}
    """Initial adapter matrices whose product the adapter has subtracted from the base's weights, by name."""
    probe_losses: list[float] | None = None
    """The losses of the saved model on the probe batch; None if the weights are sharded over processes."""
    _is_freezing_checked = False

    def initialize_adapter(self) -> None:
        """Adds the adapter. Raises ConfigError if it does not match the model."""
        adapter = self.config_obj.adapter
        if adapter is None or self._adapter_initialized:
            super().initialize_adapter()
            return
        check_adapter_names(self.model, adapter)
        with peft_errors_as_config_error(self.model, adapter):
            super().initialize_adapter()
        # Before training: the first call compares the two, and its cached result answers the strategies' later calls.
        disabled_adapter_is_base(self.model)
        self.starts_at_base = initial_adapter_is_base(self.model)
        self.initial_adapter_weights = initial_adapter_weights(self.model)
        if self.initial_adapter_weights and not self.starts_at_base:
            raise ConfigError(tied_target_message(adapter.init_lora_weights))
        optimize_adapter(self.model)

    def to_device(self, device: Any) -> FineTunedLLM:
        """Leaves the model where it was loaded. Ludwig would split it over all GPUs of the machine."""
        self.curr_device = next(self.model.parameters()).device
        return self

    def prepare_for_training(self) -> None:
        """Raises ConfigError if `layers_to_freeze_regex` freezes none or all of the trained weights."""
        super().prepare_for_training()
        if not self._is_freezing_checked:  # Ludwig may call this method again after it has frozen the weights
            check_freeze_regex(self, self.config_obj.trainer.layers_to_freeze_regex)
            self._is_freezing_checked = True

    def save(self, save_path: str) -> None:
        """Saves the weights atomically: PEFT would add to the files of an interrupted save.

        Ludwig's method assigns its own generation settings to the model, which transformers refuses to save.
        """
        with atomic_dir(Path(save_path) / MODEL_WEIGHTS_FILE_NAME) as staging_dir:
            if self.config_obj.adapter is not None:
                save_adapter(self.model, staging_dir, self.initial_adapter_weights)
            else:
                self.model.generation_config = neutral_generation_config(self.model)
                self.model.save_pretrained(staging_dir)
        is_sharded = any(hasattr(parameter, "device_mesh") for parameter in self.model.parameters())
        self.probe_losses = None if is_sharded else probe_losses(self.model).tolist()
