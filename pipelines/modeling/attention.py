"""Attention over packed sequences: causal within each sequence (intra-document masking), with shared prefixes.

A model uses it only if packed logits match those of its own attention on single sequences: `select_attention_backend`
compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipelines.modeling.prefix_tree import PrefixTree

SHARED_PREFIX, PACKED = "alfine_shared_prefix", "alfine_packed"
"""Values of transformers' `attn_implementation` for `prefix_tree_attention`: packed with or without shared prefixes."""
UNPACKED = "eager"
"""The value for a model's own attention, one sequence per forward pass."""
SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Values of transformers' `layer_types` that `prefix_tree_attention` can replace."""


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix_tree: PrefixTree | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every token to its ancestors in the prefix tree: the tokens before it in its own sequences.

    query [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim], with the tokens in the order of
    `prefix_tree.input_ids`. Without a tree (in generation) this is transformers' SDPA attention.
    Returns ([1, tokens, heads, head_dim], None), as transformers expects.
    """
    if prefix_tree is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    # split instead of slices: the gradient of a slice has the size of the whole tensor, and there is one per segment.
    queries, keys, values = (tensor.split(prefix_tree.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for segment, ancestors in enumerate(prefix_tree.ancestors):
        length, prefix_len = prefix_tree.lengths[segment], prefix_tree.prefix_lengths[segment]
        path = (*ancestors, segment)
        mask, query_segments = None, path
        if prefix_len > length or (sliding_window is not None and prefix_len + length > sliding_window):
            mask = _suffix_mask(prefix_len, length, sliding_window, query.device)
            query_segments = (segment,)
        # Without a mask, SDPA is causal from the first token on, so the prefix is queried again. That is faster than
        # a mask as long as the prefix is no longer than the segment.
        output, _ = sdpa_attention_forward(
            module,
            _concatenate(queries, query_segments),
            _concatenate(keys, path),
            _concatenate(values, path),
            mask,
            is_causal=mask is None,
            **kwargs,
        )
        outputs.append(output if output.shape[1] == length else output.split([prefix_len, length], dim=1)[1])
    return torch.cat(outputs, dim=1), None


def _concatenate(tensors: Sequence[torch.Tensor], segments: Sequence[int]) -> torch.Tensor:
    return torch.cat([tensors[segment] for segment in segments], dim=2) if len(segments) > 1 else tensors[segments[0]]


def _suffix_mask(prefix_len: int, length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """The causal mask of the last `length` tokens: bool [1, 1, length, prefix_len + length]."""
    position = torch.arange(prefix_len + length, device=device)
    distance = position[prefix_len:, None] - position[None, :]
    visible = distance >= 0
    return (visible if sliding_window is None else visible & (distance < sliding_window))[None, None]


for _name in (SHARED_PREFIX, PACKED):
    AttentionInterface.register(_name, prefix_tree_attention)
    # Left-padded prompts need SDPA's mask; without a mask function of the same name transformers would pass none.
    AttentionMaskInterface.register(_name, sdpa_mask)


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether the model's attention keeps packed sequences apart."""
    return getattr(model.config, "_attn_implementation", None) in (SHARED_PREFIX, PACKED)


def supports_prefix_sharing(model: torch.nn.Module) -> bool:
    """Whether packed sequences may share their prefixes."""
    return getattr(model.config, "_attn_implementation", None) == SHARED_PREFIX


def candidate_attention(model_class: type, config: PretrainedConfig) -> str:
    """The `attn_implementation` to load a model with: `SHARED_PREFIX` if packing may be possible, else `UNPACKED`.

    `prefix_tree_attention` supports neither soft-capped scores (Gemma 2) nor attention sinks (gpt-oss) nor layers of
    other types than `SUPPORTED_LAYER_TYPES`.
    """
    text_config = config.get_text_config()
    is_pluggable = getattr(model_class, "_supports_attention_backend", False)
    is_capped = getattr(text_config, "attn_logit_softcapping", None) is not None
    has_sinks = text_config.model_type == "gpt_oss"
    layer_types = set(getattr(text_config, "layer_types", None) or ())
    is_supported = is_pluggable and not is_capped and not has_sinks and layer_types <= SUPPORTED_LAYER_TYPES
    return SHARED_PREFIX if is_supported else UNPACKED
