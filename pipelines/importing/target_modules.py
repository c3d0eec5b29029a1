"""The names of a model's linear modules, which other tools abbreviate as `all`."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"phi-?3|phi-?4", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    (r"phi-?(1|2)", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    (r"pythia|gpt-?neox|dolly|redpajama-incite", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    (r"falcon-(7b|40b|180b|rw)", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    (r"bloom", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    (r"gpt-?j", ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")),
    (r"(^|[/_-])gpt-?2", ("c_attn", "c_proj", "c_fc")),
    (r"mpt-", ("Wqkv", "out_proj", "up_proj", "down_proj")),
    (r"starcoder2", ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj")),
    (r"(^|[/_-])opt-", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    (r"nemotron-mini|minitron", ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")),
)
"""Part of a model's name → its linear modules, as transformers names them. Others have the names of Llama."""
_CONTAINERS = ("", "self_attn.", "mlp.", "attn.", "attention.")
_PREFIXES = ("model.layers.0.", "model.language_model.layers.0.", "language_model.model.layers.0.", "")


def linear_modules(base_model: str) -> list[str]:
    """The linear modules of the layers of a model, from its name; those of Llama for a model that is not known."""
    return list(next((names for pattern, names in _FAMILIES if re.search(pattern, base_model, re.I)), _LLAMA))


def modules_matching(pattern: str, base_model: str) -> list[str]:
    """The linear modules that a regular expression on full names selects, as PEFT applies it. Raises re.error."""
    regex = re.compile(pattern)
    return [name for name in linear_modules(base_model) if any(map(regex.fullmatch, _full_names(name)))]


def _full_names(module: str) -> Iterable[str]:
    return (f"{prefix}{container}{module}" for prefix in _PREFIXES for container in _CONTAINERS)
