"""The activations that a training step saves, counted by torch: what the memory plan is compared with."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipelines.modeling.attention import candidate_attention
from pipelines.modeling.loading import detect_linear_lm_head, select_attention_backend
from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences

LENGTH, SUPERVISED = 192, 16


def saved_bytes_per_token(config: PretrainedConfig, lora: dict | None) -> float:
    """Bytes per token and layer of the tensors that a pass saves: the difference between 2 and 4 layers."""
    totals = []
    for layers in (2, 4):
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = (config.layer_types * 4)[:layers]
        totals.append(_saved_bytes(config, lora))
    return (totals[1] - totals[0]) / 2 / LENGTH


def _saved_bytes(config: PretrainedConfig, lora: dict | None) -> int:
    torch.manual_seed(0)
    attention = candidate_attention(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    select_attention_backend(model)
    detect_linear_lm_head(model)
    if lora is not None:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    model.train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = np.random.default_rng(0).integers(5, config.vocab_size, LENGTH).astype(np.int32)
    sequences = TokenSequences.supervised_from([ids], [LENGTH - SUPERVISED])
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = token_losses(model, sequences).sum()
    del loss
    return sum(saved.values())
