"""Tiny models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_tokenizers import make_tokenizer


def make_model(folder: Path, kind: str = "pad_is_eos", seed: int = 0, **config_values: Any) -> Path:
    """A two-layer Llama with random weights and its tokenizer, saved in `folder`."""
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    LlamaForCausalLM(LlamaConfig(**{**values, **config_values})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
