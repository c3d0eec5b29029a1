"""Prompts read once: the pass that scores the references also fills the cache that completions go on from.

Rows are read packed, without padding; the cache holds them side by side for `generate`, which is transformers' own, and
rows that have ended leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Cache, DynamicLayer, GenerationConfig, PretrainedConfig

from pipelines.modeling.attention import supports_prefix_sharing
from pipelines.modeling.packing import TokenSequences, batch_by_tokens, packed_losses
from pipelines.modeling.prefix_tree import build_prefix_tree

CACHE_GROWTH = 32
"""Tokens that a cache grows by at once: growing by one would copy all of it for every token."""
COMPACT_EVERY = 16
"""Tokens after which rows that have ended leave the batch."""
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
"""Settings that mean the same when the tokens are made a few at a time."""


class PreallocatedCacheLayer(DynamicLayer):
    """transformers' growing cache of one layer, with room ahead."""

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, heads, length so far + new, head_dim] of keys and values, the new ones written behind the others."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.ensure_capacity(key_states, length, length + key_states.shape[-2])
        self.keys[..., length:, :] = key_states
        self.values[..., length:, :] = value_states
        return self.keys, self.values

    def ensure_capacity(self, like: torch.Tensor, kept: int, length: int) -> None:
        """Makes keys and values `length` long in rooms that are large enough, the first `kept` tokens with what they are."""
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            before = (self.keys, self.values)
            self._buffers = tuple(
                like.new_zeros(*like.shape[:2], length + CACHE_GROWTH, like.shape[-1]) for _ in range(2)
            )  # type: ignore[assignment]
            for room, old in zip(self._buffers or (), before, strict=True):
                if kept and old is not None:
                    room[..., :kept, :] = old
        assert self._buffers is not None
        self.keys, self.values = (room[..., :length, :] for room in self._buffers)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows alone."""
        super().batch_select_indices(indices)
        self._buffers = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._buffers = None


def supports_packed_prefill(model: torch.nn.Module) -> bool:
    """Whether its rows can be read packed and its cache holds keys and values alone, of every token."""
    config: PretrainedConfig = model.config.get_text_config()  # type: ignore[operator, union-attr]
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return supports_prefix_sharing(model) and windows is None and kinds == {"full_attention"}


def packed_prefill(
    model: torch.nn.Module, rows: TokenSequences, batch_tokens: int = 4096
) -> tuple[list[float | None], Cache]:
    """Each row's mean loss over its supervised tokens, in nats (None where it has none), and the cache of the prompts
    before them, but for the last token of each: [rows, heads, longest prompt − 1, head_dim], padded on the left."""
    width = max(rows.supervised_from) - 1
    layers = [PreallocatedCacheLayer() for _ in range(model.config.get_text_config().num_hidden_layers)]  # type: ignore[operator, union-attr]
    losses: list[float | None] = []
    for numbers in batch_by_tokens(rows, batch_tokens):
        pack, cache = rows.select(numbers), Cache(layer_class_to_replicate=PreallocatedCacheLayer)
        prefix_tree = build_prefix_tree(pack.input_ids)
        with torch.no_grad():
            each = packed_losses(model, pack, prefix_tree, past_key_values=cache, use_cache=True).split(
                pack.supervised_lengths
            )
        losses += [float(one.double().mean()) if len(one) else None for one in each]
        prompts = [prefix_tree.token_indices(row)[: prompt - 1] for row, prompt in enumerate(pack.supervised_from)]
        _scatter_to_left_padded_cache(prompts, numbers, cache, layers, len(rows), width)
    return losses, Cache(layers=layers)


def _scatter_to_left_padded_cache(
    prompts: Sequence[np.ndarray],
    numbers: Sequence[int],
    packed: Cache,
    layers: list[PreallocatedCacheLayer],
    rows: int,
    width: int,
) -> None:
    """Each prompt, given as the places of its tokens in `packed`, to its row of `layers`, its last token at the right end."""
    for layer, source in zip(layers, packed.layers, strict=True):
        keys, values = source.keys, source.values
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
            layer.ensure_capacity(keys.expand(rows, -1, -1, -1), 0, width)
        for number, places in zip(numbers, prompts, strict=True):
            if len(places):
                spots = torch.from_numpy(places).to(keys.device)
                layer.keys[number, :, width - len(places) :] = keys[0, :, spots]
                layer.values[number, :, width - len(places) :] = values[0, :, spots]


def generate_from_cache(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    settings: dict[str, Any],
    cache: Cache | None,
) -> list[list[int]]:
    """What `generate` with these settings puts behind each prompt, up to and with the first of `stops`. `cache`: of all but
    the last token of each prompt."""
    device = next(model.parameters()).device
    width, limit = max(map(len, prompts)), int(settings["max_new_tokens"])
    # Padding stands on the left and is masked out, so any token will do.
    ids = torch.tensor([[stops[0]] * (width - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    plain = set(settings) <= CHUNK_SAFE_SETTINGS
    if not plain or width == 1:
        cache = None
    made: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    with torch.inference_mode():
        for tokens in _portions(limit, COMPACT_EVERY if cache is not None else limit):
            config = GenerationConfig(
                **{**settings, "max_new_tokens": tokens},
                eos_token_id=list(stops),
                pad_token_id=stops[0],
                return_dict_in_generate=True,
            )
            output = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config
            )
            for row, new in zip(rows, output.sequences[:, ids.shape[1] :].tolist(), strict=True):
                made[row] += new
            open_rows = [place for place, row in enumerate(rows) if not set(stops) & set(made[row])]
            if not open_rows:
                break
            chosen = torch.tensor(open_rows, device=device)
            if len(open_rows) < len(rows) and cache is not None:
                cache.batch_select_indices(chosen)
            grown = output.sequences.shape[1] - ids.shape[1]
            ids, mask = output.sequences[chosen], F.pad(mask[chosen], (0, grown), value=1)
            rows = [rows[place] for place in open_rows]
    return [_up_to_stop(tokens, stops) for tokens in made]


def _portions(limit: int, size: int) -> Iterator[int]:
    for start in range(0, limit, size):
        yield min(size, limit - start)


def _up_to_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    return tokens if end is None else tokens[: end + 1]
