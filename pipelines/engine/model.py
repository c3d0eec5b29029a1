"""The model as Ludwig holds it, loaded the way the hardware wants it and with attention that knows rows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ludwig.globals import MODEL_WEIGHTS_FILE_NAME
from ludwig.models.llm import LLM
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipelines.engine.adapters import (
    Untouched,
    attaching,
    begins_at_base,
    check_adapter,
    check_freezing,
    off_is_base,
    refuse_incomplete,
    save_adapter,
    taken_out,
)
from pipelines.engine.attention import ALONE, BEGINNINGS_ONCE, TOGETHER, attention_for, reads_rows_together
from pipelines.engine.packing import supervised_logits, token_losses
from pipelines.engine.trial import agree, is_exact, trial_logits, trial_losses, trial_rows
from pipelines.errors import ConfigError, ModelError
from pipelines.module_names import no_longer_whole
from pipelines.runs import replace_folder


def load_causal_lm(folder: str | Path, *, frozen: bool, quantization: Any = None) -> PreTrainedModel:
    """A causal language model from safetensors, on the GPU where there is one. Code in the folder is never run.

    `frozen` weights (under an adapter, or for completions) are bf16 on a GPU that has it; weights that are
    trained stay fp32, as everything does on a CPU. `quantization` is Ludwig's config of that name.
    """
    cuda = torch.cuda.is_available()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    arguments: dict[str, Any] = {
        "dtype": torch.bfloat16 if cuda and frozen and torch.cuda.is_bf16_supported() else torch.float32,
        "attn_implementation": attention_for(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config) if known else None,
    }
    if quantization is not None:
        arguments["quantization_config"] = quantization.to_bitsandbytes()
        arguments["device_map"] = "auto"
    model = _load_complete(Path(folder), arguments)
    if quantization is None and cuda:
        model.to("cuda")  # type: ignore[arg-type]
    model.generation_config = neutral_generation_config(model)
    settle_attention(model)
    settle_head(model)
    model.untouched = Untouched(Path(folder), quantization, trial_logits(model))  # type: ignore[assignment]
    return model


def _load_complete(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model with every weight from the folder. Raises ModelError where it cannot be loaded, and where a weight is missing
    (transformers would draw it at random), has another shape, or has no use in the model. What the architecture ties or
    declares as ignorable is not counted by transformers."""
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **arguments
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a stranger's files make the parsers and the model's constructor raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise ModelError(f"model {str(folder)!r} cannot be loaded ({reason})") from error
    mismatched = [f"{name} ({list(held)}, not {list(wanted)})" for name, held, wanted in loaded["mismatched_keys"]]
    refuse_incomplete(f"model {str(folder)!r}", loaded["missing_keys"], loaded["unexpected_keys"], mismatched)
    return model


def neutral_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Only the ids of special tokens: what else a model folder's generation_config.json or config.json sets (sampling,
    penalties, beams, no cache) would act in every later `generate` without standing in the YAML."""
    own = model.generation_config
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)


@torch.no_grad()
def settle_attention(model: PreTrainedModel) -> None:
    """Leaves the model with the fastest of the three attentions that gives what its own gives to a row alone.

    Layers that carry something from token to token (convolutions, recurrent states), sinks, or positions of a model's own
    making would otherwise go wrong in silence.
    """
    if not reads_rows_together(model):
        return
    rows, training = trial_rows(model), model.training
    model.eval().set_attn_implementation(ALONE)
    expected, _ = supervised_logits(model, rows)
    for name in (BEGINNINGS_ONCE, TOGETHER):
        model.set_attn_implementation(name)
        try:
            found, _ = supervised_logits(model, rows)
        except (TypeError, ValueError, RuntimeError):
            continue  # a forward pass that knows neither rows nor their positions
        if agree(found.float(), expected.float(), is_exact(model)):
            break
    else:
        model.set_attn_implementation(ALONE)
        logging.getLogger(__name__).warning(
            f"{type(model).__name__}: its rows are read one at a time, which is slow; read together they came out otherwise"
        )
    model.train(training)


@torch.no_grad()
def settle_head(model: PreTrainedModel) -> None:
    """Notes whether the loss may be worked out of the last hidden states (`pipelines.engine.output_loss`).

    Not where logits are scaled, capped or shifted behind the output layer.
    """
    rows, training = trial_rows(model), model.training
    model.eval().has_plain_head = False  # type: ignore[assignment]
    expected = token_losses(model, rows)
    model.has_plain_head = True  # type: ignore[assignment]
    model.has_plain_head = agree(token_losses(model, rows), expected, is_exact(model))  # type: ignore[assignment]
    model.train(training)


class FineTunedLLM(LLM):
    """Ludwig's LLM, but for how the base is loaded (Ludwig takes fp32 and its own choice of attention), and for what is asked
    of an adapter."""

    begins_elsewhere = False
    """Whether the model with its new adapter was not the base."""
    initial: Mapping[str, torch.Tensor] = {}
    """What the adapter took out of the base's weights: its matrices at the start, by name."""
    trial_losses: list[float] | None = None
    checked = False

    def __init__(self, config_obj: Any, *args: Any, **kwargs: Any) -> None:
        def load(config: Any, *_: Any, **__: Any) -> PreTrainedModel:
            return load_causal_lm(config.base_model, frozen=config.adapter is not None, quantization=config.quantization)

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
        with attaching(self.model, adapter):
            super().initialize_adapter()
        off_is_base(self.model)
        self.begins_elsewhere = not begins_at_base(self.model)
        self.initial = taken_out(self.model)
        if self.initial and self.begins_elsewhere:
            raise ConfigError(no_longer_whole(adapter.init_lora_weights))

    def prepare_for_training(self) -> None:
        super().prepare_for_training()
        if not self.checked:  # Ludwig may call it again, and has frozen the weights by then
            check_freezing(self, self.config_obj.trainer.layers_to_freeze_regex)
            self.checked = True

    def save(self, save_path: str) -> None:
        """Ludwig writes its own generation settings over the model's, and transformers refuses to save the mixture.

        Into an empty folder: PEFT adds to what a save that was cut off has left. `trial_losses` are then those of what was
        saved; none where each worker holds a part of the weights.
        """
        target = Path(save_path) / MODEL_WEIGHTS_FILE_NAME
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self.config_obj.adapter is not None:
            save_adapter(self.model, partial, self.initial)
        else:
            self.model.generation_config = neutral_generation_config(self.model)
            self.model.save_pretrained(partial)
        replace_folder(partial, target)
        shared_out = any(hasattr(weight, "device_mesh") for weight in self.model.parameters())
        self.trial_losses = None if shared_out else trial_losses(self.model).tolist()
