"""Ways to compute the attention of a prefix tree. All give the same result, up to rounding errors.

- `loop_attention`: one SDPA call per segment. Does no work that is masked; the fastest on a CPU, and right everywhere.
- `dense_attention`: one SDPA call with a mask [tokens, tokens]. For GPUs without the flash kernel (T4, MPS).
- `varlen_attention`: one call of the variable-length flash kernel (`torch.nn.attention.varlen`). For GPUs from sm80.

On a GPU the calls of the loop are launched one by one, and the number of launches limits a step with short rows.

query [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim], with the tokens in the order of
`prefix_tree.input_ids`. All return [1, tokens, heads, head_dim], as transformers expects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipelines.modeling.attention_layout import dense_mask, varlen_layout
from pipelines.modeling.prefix_tree import PrefixTree

MAX_DENSE_TOKENS = 4096
"""Tokens up to which `dense_attention` uses one mask: a longer one costs more than the launches that it saves."""
MIN_FLASH_TOKENS = 1024
"""Tokens from which `varlen_attention` uses the flash kernel. With fewer, launching it and gathering the keys takes
longer than one masked call (measured on an H100 with 672 tokens: a step of 168 ms against 148 ms)."""
_min_flash_tokens: ContextVar[int] = ContextVar("min_flash_tokens", default=MIN_FLASH_TOKENS)
FLASH_DTYPES = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def flash_kernel_at_every_size() -> Iterator[None]:
    """Lets `varlen_attention` use the flash kernel for few tokens, to compare it with other attention."""
    token = _min_flash_tokens.set(0)
    try:
        yield
    finally:
        _min_flash_tokens.reset(token)


def loop_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_tree: PrefixTree,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention by one SDPA call per segment."""
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
    return torch.cat(outputs, dim=1)


def _concatenate(tensors: Sequence[torch.Tensor], segments: Sequence[int]) -> torch.Tensor:
    return torch.cat([tensors[segment] for segment in segments], dim=2) if len(segments) > 1 else tensors[segments[0]]


def _suffix_mask(prefix_len: int, length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """The causal mask of the last `length` tokens: bool [1, 1, length, prefix_len + length]."""
    position = torch.arange(prefix_len + length, device=device)
    distance = position[prefix_len:, None] - position[None, :]
    visible = distance >= 0
    return (visible if sliding_window is None else visible & (distance < sliding_window))[None, None]


def dense_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_tree: PrefixTree,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention by one SDPA call with a mask; by `loop_attention` for more than MAX_DENSE_TOKENS tokens."""
    if query.shape[2] > MAX_DENSE_TOKENS:
        return loop_attention(module, query, key, value, prefix_tree, sliding_window, **kwargs)
    mask = dense_mask(prefix_tree, query.device, sliding_window)
    output: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **kwargs)[0]
    return output


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_tree: PrefixTree,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention by one call of the flash kernel for sequences of different lengths.

    The queries of a segment attend to the gathered keys of the path to it. The kernel aligns the causal mask at the
    last query and the last key. It takes neither fp32 nor dropout; `dense_attention` serves those passes.
    """
    device = query.device
    if torch.is_autocast_enabled(device.type):
        # Autocast knows SDPA, not this kernel.
        query, key, value = (tensor.to(torch.get_autocast_dtype(device.type)) for tensor in (query, key, value))
    if query.dtype not in FLASH_DTYPES or query.shape[2] < _min_flash_tokens.get() or kwargs.get("dropout"):
        return dense_attention(module, query, key, value, prefix_tree, sliding_window, scaling=scaling, **kwargs)
    layout = varlen_layout(prefix_tree, device)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if layout.key_indices is not None:
        keys, values = keys.index_select(0, layout.key_indices), values.index_select(0, layout.key_indices)
    output = varlen_attn(
        queries,
        keys,
        values,
        layout.query_offsets,
        layout.key_offsets,
        layout.max_queries,
        layout.max_keys,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
    )
    assert isinstance(output, torch.Tensor)  # a tuple only if auxiliary outputs are requested
    return output[None]
