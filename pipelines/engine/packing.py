"""Rows laid end to end through the model: no padding, and the vocabulary projection only where the loss counts.

The numbers are those of a padded batch: attention stays within each row and positions restart with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "alfine_rows"
"""Name under which transformers knows `row_attention`."""
PACK_TOKENS = 4096
"""Tokens that go through the model at once where nothing is kept for a backward pass."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens: `input_ids[i]` int32 of any length, of which the loss counts `[supervised_from[i]:]`."""

    input_ids: Sequence[np.ndarray]
    supervised_from: Sequence[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised_lengths)

    @property
    def supervised_lengths(self) -> list[int]:
        return [len(ids) - start for ids, start in zip(self.input_ids, self.supervised_from, strict=True)]

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.input_ids[part], self.supervised_from[part])

    def take(self, numbers: Sequence[int]) -> Rows:
        return Rows([self.input_ids[n] for n in numbers], [self.supervised_from[n] for n in numbers])


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: tuple[int, ...] | None = None,
    row_masks: tuple[torch.Tensor, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of a packed sequence.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens, head_dim]; `row_lengths` adds up to tokens;
    `row_masks` says who looks at whom where that is not simply causal. Without lengths (a model that generates, or scores
    one row) this is transformers' SDPA attention.
    Returns ([1, tokens, heads, head_dim], None), as transformers expects.
    """
    if row_lengths is None:
        answer, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return answer, None
    answers = []
    # Split, not sliced: the gradient of a slice is as long as the whole, and there is one for every row.
    rows = zip(*(tensor.split(row_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    for number, (length, (its_query, its_key, its_value)) in enumerate(zip(row_lengths, rows, strict=True)):
        mask = row_masks[number] if row_masks is not None else None
        if mask is None and sliding_window is not None and length > sliding_window:
            position = torch.arange(length, device=query.device)
            distance = position[:, None] - position[None, :]
            mask = ((distance >= 0) & (distance < sliding_window))[None, None]
        answer, _ = sdpa_attention_forward(
            module, its_query, its_key, its_value, mask, is_causal=mask is None, **kwargs
        )
        answers.append(answer)
    return torch.cat(answers, dim=1), None


AttentionInterface.register(ATTENTION, row_attention)
# Left-padded prompts need SDPA's mask; without a mask function of the same name transformers would pass none.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attention_for(model_class: type, config: PretrainedConfig) -> str:
    """`ATTENTION` where the model takes a pluggable attention that SDPA can compute exactly, else its own eager one.

    Soft-capped scores (Gemma 2) and attention sinks (gpt-oss) are beyond SDPA.
    """
    text_config = config.get_text_config()
    pluggable = getattr(model_class, "_supports_attention_backend", False)
    capped = getattr(text_config, "attn_logit_softcapping", None) is not None
    return ATTENTION if pluggable and not capped and text_config.model_type != "gpt_oss" else "eager"


def token_losses(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """Cross entropy in nats of every supervised token, row after row: fp32 [rows.supervised_tokens]."""
    logits, targets = supervised_logits(model, rows)
    return F.cross_entropy(logits, targets, reduction="none").float()


def supervised_logits(model: torch.nn.Module, rows: Rows, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict each supervised token, row after row, and those tokens:
    [rows.supervised_tokens, vocabulary] and int64 [rows.supervised_tokens]. `arguments` go to the model."""
    if getattr(model.config, "_attn_implementation", None) == ATTENTION:
        return _packed_logits(model, rows, **arguments)
    parts = [_packed_logits(model, rows[n : n + 1]) for n in range(len(rows))]
    logits, targets = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(targets)


def _packed_logits(model: torch.nn.Module, rows: Rows, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in rows.input_ids]
    tokens = torch.from_numpy(np.concatenate(rows.input_ids).astype(np.int64)).to(device)
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)
    # The logits at position p predict the token at p + 1.
    starts = np.cumsum([0, *lengths[:-1]])
    targets = torch.from_numpy(
        np.concatenate(
            [start + np.arange(first, length) for start, first, length in zip(starts, rows.supervised_from, lengths, strict=True)]
        )
    ).to(device)
    arguments: dict[str, Any] = {"input_ids": tokens[None], "position_ids": positions[None], "use_cache": False, **more}
    if len(rows) > 1:
        arguments["row_lengths"] = tuple(lengths)
    return logits_at(model, targets - 1, **arguments), tokens[targets]


def logits_at(model: torch.nn.Module, places: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """The logits of a forward pass over one packed sequence, at `places` alone: [places, vocabulary]."""
    if "logits_to_keep" in inspect.signature(_unwrapped(model).forward).parameters:
        return torch.as_tensor(model(**arguments, logits_to_keep=places).logits[0])
    return torch.as_tensor(model(**arguments).logits[0, places])


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def micro_batches(rows: Rows, size: int) -> Iterator[Rows]:
    """Slices of `size` rows, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def packs(rows: Rows, batch_tokens: int) -> Iterator[list[int]]:
    """The numbers of rows that go through the model together: about `batch_tokens` tokens, in order."""
    pack: list[int] = []
    size = 0
    for number, ids in enumerate(rows.input_ids):
        if pack and size + len(ids) > batch_tokens:
            yield pack
            pack, size = [], 0
        pack.append(number)
        size += len(ids)
    if pack:
        yield pack


def row_losses(model: torch.nn.Module, rows: Rows, batch_tokens: int = PACK_TOKENS) -> Iterator[float]:
    """Mean loss of each row's supervised tokens, in nats per token; packs of about `batch_tokens` tokens."""
    for numbers in packs(rows, batch_tokens):
        yield from pack_means(model, rows.take(numbers))


def pack_means(model: torch.nn.Module, rows: Rows) -> list[float]:
    """Mean loss of each row's supervised tokens, all in one pass."""
    with torch.no_grad():
        losses = token_losses(model, rows).split(rows.supervised_lengths)
    return [float(loss.double().mean()) for loss in losses]
