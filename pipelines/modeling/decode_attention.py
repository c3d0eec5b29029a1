"""Attention of one new token per sequence to the keys and values of its tokens, for decoding.

Sequences that share a prefix read its keys and values once, as one product with the queries of all of them, and add
what each attends to in its own tokens: the softmax of both parts is combined from their maxima and sums (Hydragen,
https://arxiv.org/abs/2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class SharedPrefix:
    """The first tokens of several sequences, with their keys and values once they have been computed.

    Attributes:
        length: the number of tokens.
        keys, values: per layer [kv_heads, length, head_dim].
    """

    length: int
    keys: Sequence[torch.Tensor] = ()
    values: Sequence[torch.Tensor] = ()


PrefixRows = Sequence[tuple[SharedPrefix, torch.Tensor]]
"""Shared prefixes, each with the indices of its sequences in the batch: int64 [sequences]."""


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None = None,
    prefixes: PrefixRows = (),
    layer: int = 0,
) -> torch.Tensor:
    """Attention of one query per sequence and head, as the queries of all heads that share keys: the same products.

    query: [sequences, heads, 1, head_dim]; key, value: [sequences, kv_heads, tokens, head_dim], without the tokens of
    a shared prefix; mask: additive [sequences, 1, 1, tokens]; `layer` selects the keys and values of `prefixes`.
    Returns [sequences, 1, heads, head_dim].
    """
    num_sequences, num_heads, _, head_dim = query.shape
    grouped = query.view(num_sequences, key.shape[1], num_heads // key.shape[1], head_dim)
    scale = head_dim**-0.5 if scale is None else scale
    if prefixes:
        output = _attention_with_prefixes(grouped * scale, key, value, mask, prefixes, layer)
    elif query.device.type == "cpu":
        # Two products and a softmax take half the time of the CPU's fused kernel, which is made for many queries.
        scores = torch.matmul(grouped * scale, key.transpose(-1, -2))
        output = torch.matmul(scores.add_(mask).softmax(-1), value)
    else:
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return output.reshape(num_sequences, 1, num_heads, head_dim)


def _attention_with_prefixes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, prefixes: PrefixRows, layer: int
) -> torch.Tensor:
    """query, scaled, and the result: [sequences, kv_heads, heads per kv_head, head_dim]."""
    peak, total, output = _partial_attention(torch.matmul(query, key.transpose(-1, -2)).add_(mask), value)
    for prefix, rows in prefixes:
        # [kv_heads, queries of all sequences and heads, head_dim]
        queries = query[rows].transpose(0, 1).flatten(1, 2)
        scores = torch.matmul(queries, prefix.keys[layer].transpose(-1, -2))
        prefix_peak, prefix_total, prefix_output = (
            part.unflatten(1, (len(rows), -1)).transpose(0, 1)
            for part in _partial_attention(scores, prefix.values[layer])
        )
        own_peak = peak[rows]
        joint_peak = torch.maximum(own_peak, prefix_peak)
        own, shared = (own_peak - joint_peak).exp_(), (prefix_peak - joint_peak).exp_()
        total[rows] = own * total[rows] + shared * prefix_total
        output[rows] = own * output[rows] + shared * prefix_output
    return output.div_(total)


def _partial_attention(scores: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The maximum of the scores, the sum of their exponentials relative to it, and the values weighted by these."""
    peak = scores.amax(-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    return peak, weights.sum(-1, keepdim=True), torch.matmul(weights, value)
