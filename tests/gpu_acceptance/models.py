"""Random models of known shapes, built on the device and saved once, with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from tests.gpu_acceptance.registry import Context
from tests.tiny_tokenizers import make_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
}
"""SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B; `small` is for correctness."""
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""What every shape becomes in the dry run on a CPU."""
ALL_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def byte_tokenizer() -> Any:
    """A tokenizer of bytes with a BOS token, which stock Ludwig requires; nothing adds it to a text."""
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.bos_token = "<bos>"
    return tokenizer


def model_config(name: str, context: Context) -> PretrainedConfig:
    """The config of a shape: Llama for `135m`, else Qwen2."""
    values = SHAPES[name] if context.is_gpu else TINY
    tokenizer = byte_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    return (LlamaConfig if name == "135m" else Qwen2Config)(**values, **ids, use_cache=True)


def random_model(config: PretrainedConfig, device: str, dtype: torch.dtype, seed: int = 0, **arguments: Any) -> Any:
    """A model whose weights are drawn on the device, in evaluation mode."""
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, **arguments)
    finally:
        torch.set_default_dtype(previous)
    return model.eval()


def texts_model(context: Context) -> Path:
    """A model like `small` whose completions are texts: its vocabulary is that of the tokenizer, and its output layer
    is not the embedding, with which a random model repeats the last token of the prompt."""
    folder = context.folder / "model_texts"
    if not folder.exists():
        tokenizer, config = byte_tokenizer(), model_config("small", context)
        config.vocab_size, config.tie_word_embeddings, config.initializer_range = len(tokenizer), False, 0.2
        random_model(config, context.device, torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def model_folder(name: str, context: Context, seed: int = 0) -> Path:
    return context.folder / f"model_{name}_{seed}"


def saved_model(name: str, context: Context, seed: int = 0) -> Path:
    """The folder of a random model, built at the first call. `small` is in fp32, the others in bf16."""
    folder = model_folder(name, context, seed)
    if (folder / "complete").exists():
        return folder
    dtype = torch.float32 if name == "small" or not context.is_gpu else torch.bfloat16
    model = random_model(model_config(name, context), context.device, dtype, seed)
    model.save_pretrained(folder, max_shard_size="20GB")
    byte_tokenizer().save_pretrained(folder)
    (folder / "complete").touch()
    del model
    if context.is_gpu:
        torch.cuda.empty_cache()
    return folder
