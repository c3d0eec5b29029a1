"""The model as Ludwig holds it, loaded the way the hardware wants it and with attention that knows rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipelines.errors import ModelError
from pipelines.modeling.adapters import (
    ModelSource,
    raise_on_weight_mismatch,
)
from pipelines.modeling.attention import PACKED, SHARED_PREFIX, UNPACKED, candidate_attention, supports_packing
from pipelines.modeling.equivalence import allclose, is_fp32, probe_batch, probe_logits
from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.quantization import bitsandbytes_config


def load_causal_lm(
    folder: str | Path, *, frozen: bool, quantization: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """A causal language model from safetensors, on the GPU where there is one. Code in the folder is never run.

    `frozen` weights (under an adapter, or for completions) are bf16 on a GPU that has it; weights that are
    trained stay fp32, as everything does on a CPU. `quantization` is the section of the config.
    """
    cuda = torch.cuda.is_available()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    arguments: dict[str, Any] = {
        "dtype": torch.bfloat16 if cuda and frozen and torch.cuda.is_bf16_supported() else torch.float32,
        "attn_implementation": candidate_attention(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
        if known
        else None,
    }
    if quantization is not None:
        arguments["quantization_config"] = bitsandbytes_config(quantization)
        arguments["device_map"] = "auto"
    model = _load_complete(Path(folder), arguments)
    if quantization is None and cuda:
        model.to("cuda")
    model.generation_config = neutral_generation_config(model)
    select_attention_backend(model)
    detect_linear_lm_head(model)
    model.model_source = ModelSource(Path(folder), quantization, probe_logits(model))
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
    raise_on_weight_mismatch(f"model {str(folder)!r}", loaded["missing_keys"], loaded["unexpected_keys"], mismatched)
    return model


def neutral_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Only the ids of special tokens: what else a model folder's generation_config.json or config.json sets (sampling,
    penalties, beams, no cache) would act in every later `generate` without standing in the YAML."""
    own = model.generation_config
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)


@torch.no_grad()
def select_attention_backend(model: PreTrainedModel) -> None:
    """Leaves the model with the fastest of the three attentions that gives what its own gives to a row alone.

    Layers that carry something from token to token (convolutions, recurrent states), sinks, or positions of a model's own
    making would otherwise go wrong in silence.
    """
    if not supports_packing(model):
        return
    rows, training = probe_batch(model), model.training
    model.eval().set_attn_implementation(UNPACKED)
    expected, _ = supervised_logits(model, rows)
    for name in (SHARED_PREFIX, PACKED):
        model.set_attn_implementation(name)
        try:
            found, _ = supervised_logits(model, rows)
        except (TypeError, ValueError, RuntimeError):
            continue  # a forward pass that knows neither rows nor their positions
        if allclose(found.float(), expected.float(), is_fp32(model)):
            break
    else:
        model.set_attn_implementation(UNPACKED)
        logging.getLogger(__name__).warning(
            f"{type(model).__name__}: its rows are read one at a time, which is slow; read together they came out otherwise"
        )
    model.train(training)


@torch.no_grad()
def detect_linear_lm_head(model: PreTrainedModel) -> None:
    """Notes whether the loss may be worked out of the last hidden states (`pipelines.modeling.linear_cross_entropy`).

    Not where logits are scaled, capped or shifted behind the output layer.
    """
    rows, training = probe_batch(model), model.training
    model.eval().has_linear_lm_head = False
    expected = token_losses(model, rows)
    model.has_linear_lm_head = True
    model.has_linear_lm_head = allclose(token_losses(model, rows), expected, is_fp32(model))
    model.train(training)
