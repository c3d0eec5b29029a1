"""Ludwig's LLM class with this project's loading, adapter checks and saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ludwig.globals import MODEL_WEIGHTS_FILE_NAME
from ludwig.models.llm import LLM
from transformers import PreTrainedModel

from pipelines.errors import ConfigError
from pipelines.modeling.adapters import (
    check_adapter,
    check_freezing,
    disabled_adapter_is_base,
    initial_adapter_is_base,
    peft_errors_as_config_error,
    save_adapter,
    subtracted_init,
)
from pipelines.modeling.equivalence import probe_losses
from pipelines.modeling.loading import load_causal_lm, neutral_generation_config
from pipelines.modeling.module_names import no_longer_whole
from pipelines.storage.files import atomic_dir


class FineTunedLLM(LLM):
    """Ludwig's LLM, but for how the base is loaded (Ludwig takes fp32 and its own choice of attention), and for what is asked
    of an adapter."""

    begins_elsewhere = False
    """Whether the model with its new adapter was not the base."""
    initial: Mapping[str, torch.Tensor] = {}
    """What the adapter took out of the base's weights: its matrices at the start, by name."""
    probe_losses: list[float] | None = None
    checked = False

    def __init__(self, config_obj: Any, *args: Any, **kwargs: Any) -> None:
        def load(config: Any, *_: Any, **__: Any) -> PreTrainedModel:
            return load_causal_lm(
                config.base_model,
                frozen=config.adapter is not None,
                quantization=config.quantization and config.quantization.model_dump(),
            )

        # The constructor calls a function of its module; there is no registry for it.
        with mock.patch("ludwig.models.llm.load_pretrained_from_config", load):
            super().__init__(config_obj, *args, **kwargs)

    def initialize_adapter(self) -> None:
        """As Ludwig's; raises ConfigError for names that match no module, and finds out what the adapter does to the base."""
        adapter = self.config_obj.adapter
        if adapter is None or self._adapter_initialized:
            super().initialize_adapter()
            return
        check_adapter(self.model, adapter)
        with peft_errors_as_config_error(self.model, adapter):
            super().initialize_adapter()
        disabled_adapter_is_base(self.model)
        self.begins_elsewhere = not initial_adapter_is_base(self.model)
        self.initial = subtracted_init(self.model)
        if self.initial and self.begins_elsewhere:
            raise ConfigError(no_longer_whole(adapter.init_lora_weights))

    def prepare_for_training(self) -> None:
        super().prepare_for_training()
        if not self.checked:  # Ludwig may call it again, and has frozen the weights by then
            check_freezing(self, self.config_obj.trainer.layers_to_freeze_regex)
            self.checked = True

    def save(self, save_path: str) -> None:
        """Ludwig writes its own generation settings over the model's, and transformers refuses to save the mixture.

        Into an empty folder: PEFT adds to what a save that was cut off has left. `probe_losses` are then those of what was
        saved; none where each worker holds a part of the weights.
        """
        target = Path(save_path) / MODEL_WEIGHTS_FILE_NAME
        with atomic_dir(target) as staging:
            if self.config_obj.adapter is not None:
                save_adapter(self.model, staging, self.initial)
            else:
                self.model.generation_config = neutral_generation_config(self.model)
                self.model.save_pretrained(staging)
        shared_out = any(hasattr(weight, "device_mesh") for weight in self.model.parameters())
        self.probe_losses = None if shared_out else probe_losses(self.model).tolist()
