"""Folders of models as large as published ones, with the headers of their weights and no data."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

import tokenizers

SIZES = {
    # hidden, MLP, layers, heads, heads of keys, vocabulary: Llama 3.2 1B and 3B, Qwen2.5 7B
    "1B": (2048, 8192, 16, 32, 8, 128_256),
    "3B": (3072, 8192, 28, 24, 8, 128_256),
    "7B": (3584, 18_944, 28, 28, 4, 152_064),
}


def write_large_model(folder: Path, size: str) -> Path:
    """A folder with config.json and a file of weights that takes no space on the disk. It has no tokenizer."""
    hidden, mlp, layers, heads, key_heads, vocabulary = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in _shapes(hidden, mlp, layers, hidden // heads * key_heads, vocabulary):
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32_768,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are words and marks, all of them unknown ones."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _shapes(hidden: int, mlp: int, layers: int, keys: int, vocabulary: int) -> Iterator[tuple[str, list[int]]]:
    yield "model.embed_tokens.weight", [vocabulary, hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocabulary, hidden]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in (
            ("q", [hidden, hidden]),
            ("k", [keys, hidden]),
            ("v", [keys, hidden]),
            ("o", [hidden, hidden]),
        ):
            yield f"{prefix}self_attn.{name}_proj.weight", shape
        for name, shape in (("gate", [mlp, hidden]), ("up", [mlp, hidden]), ("down", [hidden, mlp])):
            yield f"{prefix}mlp.{name}_proj.weight", shape
        yield f"{prefix}input_layernorm.weight", [hidden]
        yield f"{prefix}post_attention_layernorm.weight", [hidden]
