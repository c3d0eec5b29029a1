"""Greedy decoding with continuous batching over a key-value cache of fixed size; on CUDA, a step is one CUDA graph.

transformers' `generate` prepares every token on the host: on a GPU, launching the kernels of a small model takes longer
than running them. Here shapes and addresses stay the same from token to token, so the launches of a step are captured
once and replayed (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). The cache has a fixed number of
slots; when sequences end, the next prompts take their slots (Orca, OSDI 2022), so that no step runs half empty.

Tokens are those of greedy `generate`, up to the rounding of the dtype. Which models it serves is tried, see
`decoding_matches`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Cache, StaticLayer

from pipelines.evaluation.generation import prefill_batches
from pipelines.modeling.attention import attention_path
from pipelines.modeling.device_copy import copy_to_device
from pipelines.modeling.equivalence import is_fp32, outputs_match, probe_batch
from pipelines.modeling.memory import (
    OutOfMemory,
    attempt,
    free_memory,
    is_out_of_memory,
    out_of_memory_error,
    total_memory,
)
from pipelines.modeling.packing import PACK_TOKENS, supervised_logits
from pipelines.modeling.token_sequences import TokenSequences

MAX_SLOTS = 256
"""Sequences that are decoded at once. Up to about this number the weights, which are read once, cost the most."""
CACHE_FRACTION = 0.25
"""Share of the device's memory for the cache, at most twice as much as is free."""
READ_EVERY = 16
"""Tokens after which the host reads what was generated and fills the slots of sequences that have ended."""
REFILL_FRACTION = 0.25
"""Share of free slots from which they are filled: few passes over many prompts are faster than many over few."""
VARLEN_PREFILL_TOKENS = 16_384
"""Tokens per packed pass with variable-length attention, whose work does not grow with the square of it."""
MASK_ALIGNMENT = 16
"""The cache has a multiple of this number of tokens: SDPA copies masks whose rows are not aligned."""
TRIAL_TOKENS = 3


class SlotCacheLayer(StaticLayer):
    """Keys and values of one layer, [slots, kv_heads, capacity, head_dim]; new ones are written at `position`."""

    def __init__(self, like: torch.Tensor, slots: int, capacity: int, position: torch.Tensor) -> None:
        """`like` has the heads, head_dim, dtype and device; `position` is the int64 [slots, 1] of `SlotDecoder`."""
        super().__init__(max_cache_len=capacity)
        shape = (slots, like.shape[1], capacity, like.shape[3])
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.index = position[:, :, None, None]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the keys and values of one token per slot, in place, and returns all of the layer."""
        index = self.index.expand_as(key_states)
        self.keys.scatter_(2, index, key_states)
        self.values.scatter_(2, index, value_states)
        return self.keys, self.values


class SlotDecoder:
    """The state of `slots` sequences that are decoded together, and the step that appends a token to each.

    All tensors keep their addresses. A slot's token at `position` p is read, its keys and values are cached at p, and
    the most likely next token becomes the one to be read at p + 1. Free slots are computed too, and ignored.
    """

    def __init__(self, model: torch.nn.Module, slots: int, max_length: int, use_graph: bool) -> None:
        """`max_length`: the most tokens of a prompt and its completion. `use_graph` requires CUDA."""
        self.model, self.slots, self.max_length, self.use_graph = model, slots, max_length, use_graph
        self.capacity = -(-max_length // MASK_ALIGNMENT) * MASK_ALIGNMENT
        device = next(model.parameters()).device
        self.input_ids = torch.zeros((slots, 1), dtype=torch.int64, device=device)
        self.position = torch.zeros_like(self.input_ids)
        self.recent = torch.zeros((slots, READ_EVERY), dtype=torch.int64, device=device)
        self.columns = torch.arange(self.capacity, device=device)
        self.logits: torch.Tensor | None = None
        self.cache: Cache | None = None
        self._graph: Any = None
        self._is_warm = False

    @torch.no_grad()
    def fill(self, slots: Sequence[int], sequences: TokenSequences) -> list[float | None]:
        """Puts the prompts of `sequences` into free slots. Returns the mean loss of each reference or None."""
        nlls: list[float | None] = []
        tokens = VARLEN_PREFILL_TOKENS if attention_path(self.model) == "varlen" else PACK_TOKENS
        for batch in prefill_batches(self.model, sequences, tokens):
            nlls += batch.nlls
            if self.cache is None:
                self.cache = Cache(
                    layers=[
                        SlotCacheLayer(layer.keys, self.slots, self.capacity, self.position)
                        for layer in batch.cache.layers
                    ]
                )
            batch_slots = [slots[index] for index in batch.indices]
            batch.copy_to([(layer.keys, layer.values) for layer in self.cache.layers], batch_slots, pad_left=False)
        lengths = sequences.prompt_lengths
        last = [int(ids[length - 1]) for ids, length in zip(sequences.input_ids, lengths, strict=True)]
        joined = copy_to_device(np.asarray([slots, last, lengths]), self.position.device)
        rows, last_tokens, num_tokens = joined[0], joined[1, :, None], joined[2, :, None]
        self.input_ids.index_copy_(0, rows, last_tokens)
        self.position.index_copy_(0, rows, num_tokens - 1)
        return nlls

    @torch.no_grad()
    def next_tokens(self, count: int) -> list[list[int]]:
        """Appends `count` tokens, at most READ_EVERY, to each slot and returns them: [slots][count]."""
        for _ in range(count):
            self.advance()
        rows: list[list[int]] = self.recent[:, -count:].tolist()
        return rows

    @torch.no_grad()
    def advance(self) -> None:
        """Appends one token to each slot."""
        if self.use_graph and self._is_warm and self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()
            self._is_warm = True  # kernels and workspaces are loaded, which a capture must not do

    def _step(self) -> None:
        assert self.cache is not None
        dtype = self.cache.layers[0].keys.dtype
        # Additive, in the dtype of the scores: SDPA would convert a mask of bools in every layer.
        mask = torch.zeros((self.slots, self.capacity), dtype=dtype, device=self.position.device)
        mask.masked_fill_(self.columns > self.position, float("-inf"))
        output = self.model(
            input_ids=self.input_ids,
            position_ids=self.position,
            attention_mask=mask[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1]
        token = self.logits.argmax(-1, keepdim=True)
        self.recent.copy_(torch.cat([self.recent[:, 1:], token], dim=1))
        self.input_ids.copy_(token)
        # A sequence that has ended goes on until the host reads it, but neither beyond the cache nor the context.
        self.position.add_(1).clamp_(max=self.max_length - 1)


@torch.no_grad()
def decoding_matches(model: torch.nn.Module, use_graph: bool) -> bool:
    """Whether decoding in slots gives the logits of packed passes over the probe batch.

    The last tokens of each sequence are decoded, given the true ones before.
    """
    probe = probe_batch(model)
    prompt_lengths = [len(ids) - TRIAL_TOKENS for ids in probe.input_ids]
    sequences = TokenSequences.supervised_from(probe.input_ids, prompt_lengths)
    slots = [2, 0, 3]
    try:
        expected = supervised_logits(model, sequences)[0].float().view(len(slots), TRIAL_TOKENS, -1)
        decoder = SlotDecoder(model, 4, max(map(len, probe.input_ids)), use_graph)
        decoder.fill(slots, sequences)
        tokens = np.stack([ids[-TRIAL_TOKENS - 1 :] for ids in probe.input_ids], axis=1).astype(np.int64)
        actual = []
        for step in range(TRIAL_TOKENS):
            decoder.input_ids[slots] = torch.from_numpy(tokens[step]).to(decoder.input_ids.device)[:, None]
            decoder.advance()
            assert decoder.logits is not None
            actual.append(decoder.logits[slots].float())
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # the forward pass takes no mask or positions, or waits for the device, which cannot be captured
    return outputs_match(torch.stack(actual, dim=1), expected, is_fp32(model))


def decode_greedy(
    model: torch.nn.Module,
    sequences: TokenSequences,
    limits: Sequence[int],
    stop_token_ids: Sequence[int],
    use_graph: bool,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[list[int]], list[float | None]]:
    """Completes the prompt of each sequence by at most `limits` tokens, up to and including the first stop token.

    Also returns the mean loss of each reference, in nats per token; None for a sequence without one. `progress` is
    called with the number of sequences that have ended. Raises MachineError if one does not fit into memory.
    """
    results: dict[int, tuple[list[int], float | None]] = {}
    totals = [length + limit for length, limit in zip(sequences.prompt_lengths, limits, strict=True)]
    max_slots = MAX_SLOTS
    for indices in _groups_of_similar_length(totals):
        while remaining := [index for index in indices if index not in results]:
            max_length = max(totals[index] for index in remaining)
            slots = min(max_slots, _num_slots(model, max_length, len(remaining)))
            decoder = SlotDecoder(model, slots, max_length, use_graph)
            decode = partial(_decode_group, decoder, sequences, limits, stop_token_ids, remaining, results, progress)
            outcome = attempt(decode)
            if isinstance(outcome, OutOfMemory):
                if slots == 1:
                    raise out_of_memory_error("completions", outcome, num_tokens=max_length)
                max_slots = slots // 2
            del decoder, decode  # before the next one allocates its cache
    tokens, nlls = zip(*(results[index] for index in range(len(limits))), strict=True)
    return list(tokens), list(nlls)


def _decode_group(
    decoder: SlotDecoder,
    sequences: TokenSequences,
    limits: Sequence[int],
    stop_token_ids: Sequence[int],
    indices: Sequence[int],
    results: dict[int, tuple[list[int], float | None]],
    progress: Callable[[int], None],
) -> None:
    """Completes the sequences at `indices` and puts the tokens and the loss of each into `results` when it ends."""
    generated, nlls = dict[int, list[int]](), dict[int, float | None]()
    waiting, active = deque(indices), dict[int, int]()
    while waiting or active:
        free = [slot for slot in range(decoder.slots) if slot not in active]
        if waiting and len(free) >= REFILL_FRACTION * decoder.slots:
            filled = {slot: waiting.popleft() for slot in free[: len(waiting)]}
            scores = decoder.fill(list(filled), sequences.select(list(filled.values())))
            nlls |= zip(filled.values(), scores, strict=True)
            generated |= {index: [] for index in filled.values()}
            active |= filled
        longest = max(limits[index] - len(generated[index]) for index in active.values())
        rows = decoder.next_tokens(min(READ_EVERY, longest))
        ended = []
        for slot, index in active.items():
            tokens = _truncate(generated[index] + rows[slot], stop_token_ids, limits[index])
            generated[index] = tokens
            if len(tokens) == limits[index] or tokens[-1] in stop_token_ids:
                results[index] = (tokens, nlls[index])
                ended.append(slot)
        for slot in ended:
            del active[slot]
        progress(len(ended))


def _truncate(tokens: list[int], stop_token_ids: Sequence[int], limit: int) -> list[int]:
    """The first `limit` tokens, or fewer up to and including the first stop token."""
    end = next((index for index, token in enumerate(tokens) if token in stop_token_ids), len(tokens))
    return tokens[: min(end + 1, limit)]


def _groups_of_similar_length(totals: Sequence[int]) -> Iterable[list[int]]:
    """The indices of `totals`, the longest first, in groups up to 64, 96, 128, 192, 256, 384, … with a graph each."""
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(totals)), key=lambda index: (-totals[index], index)):
        bound = 64
        while bound < totals[index]:
            bound = bound * 3 // 2 if bound & (bound - 1) == 0 else bound // 3 * 4
        groups.setdefault(bound, []).append(index)
    return groups.values()


def _num_slots(model: torch.nn.Module, max_length: int, num_sequences: int) -> int:
    """The number of slots: a power of two, as many as there are sequences or as memory and MAX_SLOTS allow."""
    limit = min(MAX_SLOTS, num_sequences, max(1, cache_bytes(model) // (max_length * cache_bytes_per_token(model))))
    # Rounded up for the sequences, down for the memory.
    power = 1 << (limit - 1).bit_length()
    return power if limit == num_sequences or power == limit else power // 2


def cache_bytes_per_token(model: torch.nn.Module) -> int:
    """The bytes of the keys and values of one token in all layers."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype: torch.dtype = getattr(model, "dtype", torch.float32)
    return int(2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize)


def cache_bytes(model: torch.nn.Module) -> int:
    """The memory for the cache on the device of the model."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return 1 << 30
    # Of the total if possible, so that batches, and with them rounding errors, do not depend on what else runs.
    return int(CACHE_FRACTION * min(total_memory(device), 2 * free_memory(device)))
