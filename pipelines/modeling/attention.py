"""Attention that knows rows: which of the tokens laid end to end may look at which.

A model takes it where it gives, on a few rows, what the model's own attention gives (`select_attention_backend`).
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
"""Names under which transformers knows `prefix_tree_attention`: with rows that share what they begin with, or each with its own."""
UNPACKED = "eager"
"""The model's own attention, of one row at a time."""
SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Layers, in transformers' names, that `prefix_tree_attention` can stand in for."""


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
    """Causal attention within each row of a packed sequence.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim], the tokens as `prefix_tree` has them.
    Without one (a model that generates) this is transformers' SDPA attention.
    Returns ([1, tokens, heads, head_dim], None), as transformers expects.
    """
    if prefix_tree is None:
        answer, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return answer, None
    # Split, not sliced: the gradient of a slice is as long as the whole, and there is one for every segment.
    queries, keys, values = (tensor.split(prefix_tree.lengths, dim=2) for tensor in (query, key, value))
    answers = []
    for segment, ancestors in enumerate(prefix_tree.ancestors):
        length, depth, path = prefix_tree.lengths[segment], prefix_tree.prefix_lengths[segment], (*ancestors, segment)
        mask, asked = None, path
        if depth > length or (sliding_window is not None and depth + length > sliding_window):
            mask, asked = _mask(depth, length, sliding_window, query.device), (segment,)
        # Without a mask attention is causal from the first token on, so what comes before is asked again: up to as many
        # tokens as the segment's own that is faster.
        answer, _ = sdpa_attention_forward(
            module,
            _joined(queries, asked),
            _joined(keys, path),
            _joined(values, path),
            mask,
            is_causal=mask is None,
            **kwargs,
        )
        answers.append(answer if answer.shape[1] == length else answer.split([depth, length], dim=1)[1])
    return torch.cat(answers, dim=1), None


def _joined(parts: Sequence[torch.Tensor], path: Sequence[int]) -> torch.Tensor:
    return torch.cat([parts[segment] for segment in path], dim=2) if len(path) > 1 else parts[path[0]]


def _mask(depth: int, length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """[1, 1, length, depth + length]: whom the last `length` of a row's first tokens may look at."""
    position = torch.arange(depth + length, device=device)
    distance = position[depth:, None] - position[None, :]
    seen = distance >= 0
    return (seen if sliding_window is None else seen & (distance < sliding_window))[None, None]


for _name in (SHARED_PREFIX, PACKED):
    AttentionInterface.register(_name, prefix_tree_attention)
    # Left-padded prompts need SDPA's mask; without a mask function of the same name transformers would pass none.
    AttentionMaskInterface.register(_name, sdpa_mask)


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether its attention knows rows."""
    return getattr(model.config, "_attn_implementation", None) in (SHARED_PREFIX, PACKED)


def supports_prefix_sharing(model: torch.nn.Module) -> bool:
    """Whether rows may share what they begin with."""
    return getattr(model.config, "_attn_implementation", None) == SHARED_PREFIX


def candidate_attention(model_class: type, config: PretrainedConfig) -> str:
    """What to load a model with, for `pipelines.modeling.loading` to try: `UNPACKED` where it cannot be anything else.

    Beyond `prefix_tree_attention` are soft-capped scores (Gemma 2), sinks (gpt-oss), and layers of other kinds.
    """
    text_config = config.get_text_config()
    pluggable = getattr(model_class, "_supports_attention_backend", False)
    capped = getattr(text_config, "attn_logit_softcapping", None) is not None or text_config.model_type == "gpt_oss"
    kinds = set(getattr(text_config, "layer_types", None) or ())
    return SHARED_PREFIX if pluggable and not capped and kinds <= SUPPORTED_LAYER_TYPES else UNPACKED
