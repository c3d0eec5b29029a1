"""Generation that reuses the key-value cache of a packed prefill.

One forward pass over packed sequences (no padding, shared prefixes computed once) scores the references and fills the
cache of the prompts. `transformers`' own `generate` continues from that cache; finished sequences are evicted from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Cache, DynamicLayer, GenerationConfig, PretrainedConfig

from pipelines.modeling.attention import attention_path, supports_prefix_sharing
from pipelines.modeling.device_copy import copy_to_device
from pipelines.modeling.packing import packed_losses
from pipelines.modeling.prefix_tree import build_prefix_tree
from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens

CACHE_GROWTH = 32
"""Tokens by which a full cache grows: growing by one would copy all of it for every token."""
COMPACT_EVERY = 16
"""Generated tokens after which finished sequences are evicted from the batch and its cache."""
CHUNK_SAFE_SETTINGS = {
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
}
"""Generation settings that have the same effect if the tokens are generated in several calls."""


class PreallocatedCacheLayer(DynamicLayer):
    """The growing key-value cache of one layer, on buffers that are longer than the keys and values in use."""

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Starts with no tokens, without the copies from the host of transformers' own method."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states.new_empty(0), value_states.new_empty(0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends new keys and values and returns all, each [batch, heads, cached + new tokens, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.ensure_capacity(key_states, length, length + key_states.shape[-2])
        self.keys[..., length:, :] = key_states
        self.values[..., length:, :] = value_states
        return self.keys, self.values

    def ensure_capacity(self, like: torch.Tensor, used: int, length: int) -> None:
        """Makes keys and values `length` tokens long and keeps their first `used` tokens.

        New buffers have the batch size, heads, dtype and device of `like`.
        """
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            previous = (self.keys, self.values)
            shape = (*like.shape[:2], length + CACHE_GROWTH, like.shape[-1])
            self._buffers = (like.new_zeros(shape), like.new_zeros(shape))
            for buffer, cached in zip(self._buffers, previous, strict=True):
                if used and cached is not None:
                    buffer[..., :used, :] = cached
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the sequences at `indices` of the batch and drops the others."""
        super().batch_select_indices(indices)
        self._buffers = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._buffers = None


def supports_packed_prefill(model: torch.nn.Module) -> bool:
    """Whether the model accepts packed sequences and its cache holds the keys and values of every token and no more."""
    config: PretrainedConfig = model.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return supports_prefix_sharing(model) and window is None and layer_types == {"full_attention"}


def packed_prefill(
    model: torch.nn.Module, sequences: TokenSequences, batch_tokens: int = 4096
) -> tuple[list[float | None], Cache]:
    """Scores the references of `sequences` and caches their prompts, in forward passes of about `batch_tokens` tokens.

    Returns each sequence's mean negative log-likelihood over its supervised tokens, in nats per token (None without
    supervised tokens), and the cache of the prompts without their last tokens: per layer keys and values
    [sequences, heads, longest prompt - 1, head_dim], padded on the left.
    """
    width = max(sequences.prompt_lengths) - 1
    num_layers = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    layers = [PreallocatedCacheLayer() for _ in range(num_layers)]
    nlls: list[float | None] = []
    for batch in prefill_batches(model, sequences, batch_tokens):
        nlls += batch.nlls
        for layer, source in zip(layers, batch.cache.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(source.keys, source.values)
                layer.ensure_capacity(source.keys.expand(len(sequences), -1, -1, -1), 0, width)
        batch.copy_to([(layer.keys, layer.values) for layer in layers], batch.indices, pad_left=True)
    return nlls, Cache(layers=layers)


@dataclass(frozen=True)
class PrefillBatch:
    """Sequences that one packed forward pass has scored, with the keys and values of its tokens.

    Attributes:
        indices: which sequences these are.
        nlls: the mean loss of the supervised tokens of each, in nats per token; None without supervised tokens.
        token_indices: for each, the indices in `cache` of the tokens of its prompt but the last: int64 [tokens].
        cache: per layer keys and values [1, heads, packed tokens, head_dim].
    """

    indices: list[int]
    nlls: list[float | None]
    token_indices: list[np.ndarray]
    cache: Cache

    def copy_to(
        self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: Sequence[int], *, pad_left: bool
    ) -> None:
        """Copies the prompts into `rows` of the keys and values of `layers`, [all rows, heads, tokens, head_dim].

        They start at the first token, or end at the last with `pad_left`. Padding up to the longest prompt becomes 0.
        The indices go to the device once and serve all layers.
        """
        width = layers[0][0].shape[2] if pad_left else max(map(len, self.token_indices))
        sources = np.full((len(rows), width), -1)
        for source, prompt_tokens in zip(sources, self.token_indices, strict=True):
            start = width - len(prompt_tokens) if pad_left else 0
            source[start : start + len(prompt_tokens)] = prompt_tokens
        device = self.cache.layers[0].keys.device
        joined = copy_to_device(np.concatenate([sources.reshape(-1), np.asarray(rows)]), device)
        gathered, target_rows = joined.split([sources.size, len(rows)])
        is_padding, gathered = (gathered < 0).view(len(rows), 1, width, 1), gathered.clamp(min=0)
        for targets, source in zip(layers, self.cache.layers, strict=True):
            for target, tensor in zip(targets, (source.keys, source.values), strict=True):
                selected = tensor[0].index_select(1, gathered).unflatten(1, (len(rows), width)).transpose(0, 1)
                target[:, :, :width].index_copy_(0, target_rows, selected.masked_fill_(is_padding, 0))


def prefill_batches(
    model: torch.nn.Module, sequences: TokenSequences, batch_tokens: int = 4096
) -> Iterator[PrefillBatch]:
    """The packed forward passes over `sequences`, of about `batch_tokens` tokens each."""
    # The other attention paths gather the keys of a shared prefix for each sequence, or mask all pairs of tokens.
    is_shared_once = attention_path(model) == "loop"
    for indices in batch_by_tokens(sequences, batch_tokens, count_shared_once=is_shared_once):
        batch, packed_cache = sequences.select(indices), Cache(layer_class_to_replicate=PreallocatedCacheLayer)
        prefix_tree = build_prefix_tree(batch.input_ids)
        with torch.no_grad():
            losses = packed_losses(model, batch, prefix_tree, past_key_values=packed_cache, use_cache=True)
        # One copy for all sequences: on a GPU the host waits for each.
        nlls = [
            float(token_losses.double().mean()) if len(token_losses) else None
            for token_losses in losses.cpu().split(batch.supervised_lengths)
        ]
        token_indices = [
            prefix_tree.token_indices(index)[: prompt_length - 1]
            for index, prompt_length in enumerate(batch.prompt_lengths)
        ]
        yield PrefillBatch(indices, nlls, token_indices, packed_cache)


def generate_from_cache(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    stop_token_ids: Sequence[int],
    settings: dict[str, Any],
    cache: Cache | None,
) -> list[list[int]]:
    """Generates a completion for each tokenized prompt, up to and including the first of `stop_token_ids`.

    `settings` are those of `transformers.GenerationConfig`, with `max_new_tokens`. `cache` holds all tokens of the
    prompts but the last of each (`packed_prefill`); it is ignored if a setting is not in CHUNK_SAFE_SETTINGS.
    """
    device = next(model.parameters()).device
    width, max_new_tokens = max(map(len, prompts)), int(settings["max_new_tokens"])
    # Padding is on the left and masked, so any token will do.
    ids = torch.tensor(
        [[stop_token_ids[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    if not set(settings) <= CHUNK_SAFE_SETTINGS or width == 1:
        cache = None
    generated: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    with torch.inference_mode():
        for chunk in _chunk_sizes(max_new_tokens, COMPACT_EVERY if cache is not None else max_new_tokens):
            config = GenerationConfig(
                **{**settings, "max_new_tokens": chunk},
                eos_token_id=list(stop_token_ids),
                pad_token_id=stop_token_ids[0],
                return_dict_in_generate=True,
            )
            output = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config
            )
            for prompt_index, new_tokens in zip(active, output.sequences[:, ids.shape[1] :].tolist(), strict=True):
                generated[prompt_index] += new_tokens
            unfinished = [
                batch_index
                for batch_index, prompt_index in enumerate(active)
                if not set(stop_token_ids) & set(generated[prompt_index])
            ]
            if not unfinished:
                break
            kept = torch.tensor(unfinished, device=device)
            if len(unfinished) < len(active) and cache is not None:
                cache.batch_select_indices(kept)
            num_new = output.sequences.shape[1] - ids.shape[1]
            ids, mask = output.sequences[kept], F.pad(mask[kept], (0, num_new), value=1)
            active = [active[batch_index] for batch_index in unfinished]
    return [_truncate_after_stop(tokens, stop_token_ids) for tokens in generated]


def _chunk_sizes(total: int, size: int) -> Iterator[int]:
    """Splits `total` tokens into chunks of `size`, the last one smaller."""
    for start in range(0, total, size):
        yield min(size, total - start)


def _truncate_after_stop(tokens: list[int], stop_token_ids: Sequence[int]) -> list[int]:
    """The tokens up to and including the first stop token."""
    end = next((index for index, token in enumerate(tokens) if token in stop_token_ids), None)
    return tokens if end is None else tokens[: end + 1]
