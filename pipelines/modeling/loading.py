"""Loading causal language models, with packed attention if it gives the same logits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipelines.errors import MachineError, ModelError
from pipelines.modeling.adapters import ModelSource, raise_on_weight_mismatch
from pipelines.modeling.attention import UNPACKED, attention_candidates, candidate_attention, supports_packing
from pipelines.modeling.attention_paths import flash_kernel_at_every_size
from pipelines.modeling.equivalence import is_fp32, outputs_match, probe_batch, probe_logits
from pipelines.modeling.fused_norms import fuse_rms_norms
from pipelines.modeling.hardware import current_hardware, empty_cache, use_fp32
from pipelines.modeling.liger import use_liger_kernels
from pipelines.modeling.memory import is_out_of_memory, machine_error_on_out_of_memory
from pipelines.modeling.mixed_precision import autocast, autocast_dtype
from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.quantization import bitsandbytes_config, keep_weights_unpacked


@machine_error_on_out_of_memory("the loading of a model", "a smaller base_model, or quantization")
def load_causal_lm(
    folder: str | Path, *, allow_half_precision: bool, quantization: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """A causal language model from safetensors, on the GPU if there is one. Code in the folder is never executed.

    With `allow_half_precision` (for inference, or under an adapter) weights have the dtype of the hardware policy: bf16
    or fp16 on a GPU, fp32 on a CPU. Otherwise (if the weights are trained) they are fp32. Whether they require
    gradients does not depend on it.
    `quantization` is the section of the config. Raises ModelError.
    """
    hardware = current_hardware()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    arguments: dict[str, Any] = {
        "dtype": hardware.dtype if allow_half_precision else torch.float32,
        "attn_implementation": candidate_attention(model_class, config) if model_class is not None else None,
    }
    if quantization is not None:
        arguments["quantization_config"] = bitsandbytes_config(quantization, hardware.dtype)
    if quantization is not None or hardware.device.type != "cpu":
        # One device per process. The weights are read straight onto it.
        arguments["device_map"] = {"": hardware.device}
    model = _load_complete(Path(folder), arguments)
    if hardware.device.type == "cpu":
        keep_weights_unpacked(model)
    if hardware.device.type == "cuda":
        fuse_rms_norms(model)
        if arguments["dtype"] != torch.float32 and quantization is None:
            use_liger_kernels(model)
    model.generation_config = neutral_generation_config(model)
    if hardware.dtype == torch.float16 and _overflows(model):
        use_fp32(f"{type(model).__name__} overflows in fp16")
        del model  # before the second copy is loaded
        empty_cache(hardware.device)
        return load_causal_lm(folder, allow_half_precision=allow_half_precision, quantization=quantization)
    select_attention_backend(model)
    detect_linear_lm_head(model)
    with autocast(hardware.device):
        logits = probe_logits(model)
    model.model_source = ModelSource(Path(folder), quantization, logits)
    return model


def _overflows(model: PreTrainedModel) -> bool:
    """Whether logits by the model's own attention are not finite in the precision of this process."""
    attention, is_replaced = model.config._attn_implementation, supports_packing(model)
    if is_replaced:
        model.set_attn_implementation(UNPACKED)
    with autocast(current_hardware().device):
        logits = probe_logits(model)
    if is_replaced:
        model.set_attn_implementation(attention)
    return not bool(torch.isfinite(logits).all())


def _load_complete(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model with all its weights from the folder.

    Raises ModelError if the model cannot be loaded, or if a weight is missing (transformers would initialize it at
    random), has another shape or is not used by the architecture. transformers itself leaves out tied and ignorable
    weights.
    """
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **arguments
        )
    except Exception as error:  # untrusted files can make the parsers and the model's constructor raise anything
        if is_out_of_memory(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise ModelError(f"model {str(folder)!r} cannot be loaded ({reason})") from error
    mismatched = [
        f"{name} ({list(shape)}, expected {list(expected)})" for name, shape, expected in loaded["mismatched_keys"]
    ]
    raise_on_weight_mismatch(f"model {str(folder)!r}", loaded["missing_keys"], loaded["unexpected_keys"], mismatched)
    return model


def neutral_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """A generation config with the ids of the special tokens only.

    Other settings in the folder's generation_config.json or config.json (sampling, penalties, beams, no cache) would
    affect every `generate` without being in the YAML.
    """
    own = model.generation_config
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)


@torch.no_grad()
def select_attention_backend(model: PreTrainedModel) -> None:
    """Sets the fastest attention whose logits equal those of the model's own attention on single sequences.

    Models that carry state from token to token (convolutions, recurrent states), that have attention sinks or that
    compute positions themselves would otherwise be wrong without an error.
    """
    if not supports_packing(model):
        return
    batch, was_training = probe_batch(model), model.training
    hardware = current_hardware()
    is_exact = is_fp32(model) and autocast_dtype(hardware.device) is None
    with autocast(hardware.device), flash_kernel_at_every_size():
        model.eval().set_attn_implementation(UNPACKED)
        expected, _ = supervised_logits(model, batch)
        for attention in attention_candidates(hardware.device, hardware.dtype, hardware.attention):
            model.set_attn_implementation(attention)
            try:
                logits, _ = supervised_logits(model, batch)
            except (TypeError, ValueError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                continue  # the forward pass takes no prefix tree or no position ids, or the device has no such kernel
            if outputs_match(logits.float(), expected.float(), is_exact):
                break
        else:
            model.set_attn_implementation(UNPACKED)
            if hardware.attention is not None:
                raise MachineError(
                    f"pipeline.hardware.attention: {hardware.attention} does not give the logits of "
                    f"{type(model).__name__} on {hardware.device.type}; use attention: auto"
                )
            logging.getLogger(__name__).warning(
                f"{type(model).__name__}: packing disabled: packed and unpacked logits differ; training is slower"
            )
    model.train(was_training)


@torch.no_grad()
def detect_linear_lm_head(model: PreTrainedModel) -> None:
    """Sets `model.has_linear_lm_head`: whether logits are the product of the output layer and the last hidden states.

    It is False for models that scale, cap or shift logits after the output layer. See `linear_cross_entropy`.
    """
    batch, was_training = probe_batch(model), model.training
    model.eval().has_linear_lm_head = False
    expected = token_losses(model, batch)
    model.has_linear_lm_head = True
    model.has_linear_lm_head = outputs_match(token_losses(model, batch), expected, is_fp32(model))
    model.train(was_training)
