"""Attention over packed sequences: causal within each sequence (intra-document masking), with shared prefixes.

A model uses it only if packed logits match those of its own attention on single sequences: `select_attention_backend`
compares them. How it is computed depends on the device (`pipelines.modeling.attention_paths`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipelines.modeling.attention_paths import dense_attention, loop_attention, varlen_attention
from pipelines.modeling.decode_attention import PrefixRows, decode_attention
from pipelines.modeling.prefix_tree import PrefixTree

AttentionPath = Callable[..., torch.Tensor]
PATHS: dict[str, AttentionPath] = {"varlen": varlen_attention, "dense": dense_attention, "loop": loop_attention}
"""The ways to compute attention over a prefix tree, by the names of `pipeline.hardware.attention`."""

SHARED = {path: f"alfine_{path}_shared" for path in PATHS}
"""Values of transformers' `attn_implementation`, by path: packed sequences with shared prefixes."""
PACKED = {path: f"alfine_{path}" for path in PATHS}
"""The values for packed sequences without shared prefixes."""
MASKED = "alfine_masked"
"""The value for packed sequences that transformers keeps apart by a mask, for models that do not pass the tree on."""
UNPACKED = "eager"
"""The value for a model's own attention, one sequence per forward pass."""
SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Values of transformers' `layer_types` that attention over a prefix tree can replace."""


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    path: AttentionPath,
    prefix_tree: PrefixTree | None = None,
    sliding_window: int | None = None,
    shared_prefixes: PrefixRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every token to its ancestors in the prefix tree: the tokens before it in its own sequences.

    Shapes are those of `pipelines.modeling.attention_paths`. Without a tree (in generation) this is transformers' SDPA
    attention; with `shared_prefixes`, which may be empty, it is `decode_attention`, which needs one query per sequence
    and a mask. Returns ([1, tokens, heads, head_dim], None), as transformers expects.
    """
    if prefix_tree is None and shared_prefixes is not None:
        assert attention_mask is not None
        layer = module.layer_idx if shared_prefixes else 0
        output = decode_attention(
            query, key, value, attention_mask, kwargs.get("scaling"), shared_prefixes, cast(int, layer)
        )
        return output, None
    if prefix_tree is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    return path(module, query, key, value, prefix_tree=prefix_tree, sliding_window=sliding_window, **kwargs), None


def _masked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix_tree: PrefixTree | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention with the mask that transformers builds from the positions."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


for _path, _function in PATHS.items():
    AttentionInterface.register(SHARED[_path], partial(prefix_tree_attention, path=_function))
    AttentionInterface.register(PACKED[_path], partial(prefix_tree_attention, path=_function))
AttentionInterface.register(MASKED, _masked_attention)
for _name in (*SHARED.values(), *PACKED.values(), MASKED):
    # Left-padded prompts need SDPA's mask; without a mask function of the same name transformers would pass none.
    AttentionMaskInterface.register(_name, sdpa_mask)


def unused_attention_mask(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor | None:
    """The `attention_mask` of a packed pass, which keeps transformers from building one of [tokens, tokens].

    transformers returns a mask of four dimensions as it is, and attention over a prefix tree does not read it. None for
    a model that needs transformers' mask.
    """
    is_masked = model.config._attn_implementation == MASKED  # type: ignore[union-attr]
    return None if is_masked else input_ids.new_empty((1, 1, 1, 1), dtype=torch.bool)


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether the model's attention keeps packed sequences apart."""
    implementation = getattr(model.config, "_attn_implementation", None)
    return implementation == MASKED or implementation in {*SHARED.values(), *PACKED.values()}


def supports_prefix_sharing(model: torch.nn.Module) -> bool:
    """Whether packed sequences may share their prefixes."""
    return getattr(model.config, "_attn_implementation", None) in SHARED.values()


def attention_path(model: torch.nn.Module) -> str:
    """The name of the model's attention, for reports: a key of PATHS, "masked", or "unpacked"."""
    implementation = str(getattr(model.config, "_attn_implementation", None))
    names = {name: path for names in (SHARED, PACKED) for path, name in names.items()}
    return "masked" if implementation == MASKED else names.get(implementation, "unpacked")


def candidate_attention(model_class: type, config: PretrainedConfig) -> str:
    """The `attn_implementation` to load a model with: one with a prefix tree if packing may be possible, else UNPACKED.

    Attention over a prefix tree supports neither soft-capped scores (Gemma 2) nor attention sinks (gpt-oss) nor layers
    of other types than `SUPPORTED_LAYER_TYPES`.
    """
    text_config = config.get_text_config()
    is_pluggable = getattr(model_class, "_supports_attention_backend", False)
    is_capped = getattr(text_config, "attn_logit_softcapping", None) is not None
    has_sinks = text_config.model_type == "gpt_oss"
    layer_types = set(getattr(text_config, "layer_types", None) or ())
    is_supported = is_pluggable and not is_capped and not has_sinks and layer_types <= SUPPORTED_LAYER_TYPES
    return SHARED["loop"] if is_supported else UNPACKED


def attention_candidates(device: torch.device, dtype: torch.dtype, path: str | None = None) -> list[str]:
    """The values of `attn_implementation` to try, the fastest first; `path` (a key of PATHS) excludes the others.

    `dtype` is that of matrix products. On a CPU nothing is launched, so the loop, which computes no masked scores, is
    the fastest. The flash kernel needs half precision and compute capability 8.0.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    if path is not None:
        paths = [path]
    elif device.type == "cpu":
        paths = ["loop"]
    elif device.type == "cuda" and is_half and torch.cuda.get_device_capability(device) >= (8, 0):
        paths = ["varlen", "dense", "loop"]
    else:
        paths = ["dense", "loop"]
    masked = [MASKED] if path is None else []
    return [*(SHARED[name] for name in paths), *(PACKED[name] for name in paths), *masked]
