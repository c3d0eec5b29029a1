"""Sequences of one model that are decoded together, each in a slot of a key-value cache (continuous batching).

Unlike `slot_decoding`, whose shapes are fixed for CUDA graphs, a step computes the slots in use and the tokens up to
the longest sequence, so that a few short sequences are fast. The sequences in use fill the first slots: when one ends,
the last takes its slot. The keys and values of a prefix that sequences share are kept and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from pipelines.evaluation.generation import PrefillBatch, prefill_batches, supports_packed_prefill
from pipelines.evaluation.slot_decoding import MASK_ALIGNMENT, TRIAL_TOKENS
from pipelines.modeling.decode_attention import SharedPrefix
from pipelines.modeling.device_copy import copy_to_device
from pipelines.modeling.equivalence import is_fp32, outputs_match, probe_batch
from pipelines.modeling.memory import is_out_of_memory
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences

PREFILL_TOKENS = 4096
"""Tokens of prompts per forward pass."""


class SlotLayer(CacheLayerMixin):
    """The keys and values of one layer: [slots, kv_heads, capacity, head_dim], of which a step uses a part."""

    is_compileable = False
    is_sliding = False

    def __init__(self, pool: SlotPool[Any], like: torch.Tensor) -> None:
        """`like` has the heads, head_dim, dtype and device: [1, kv_heads, tokens, head_dim]."""
        super().__init__()
        self._pool = pool
        self.keys, self.values = like.new_zeros(self._shape(like, 0)), like.new_zeros(self._shape(like, 0))
        self.is_initialized = True

    def _shape(self, like: torch.Tensor, slots: int) -> tuple[int, int, int, int]:
        return slots, like.shape[1], self._pool.capacity, like.shape[3]

    def resize(self, slots: int) -> None:
        """Makes room for `slots` sequences and keeps those that there are."""
        # Zeros: what is masked is multiplied by 0, and 0 · NaN is NaN.
        self.keys, self.values = (
            torch.cat([tensor, tensor.new_zeros((slots - len(tensor), *tensor.shape[1:]))]) for tensor in self.tensors
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot to another."""
        for tensor in self.tensors:
            tensor[target, :, :length] = tensor[source, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the keys and values of one token per sequence, and returns those of all tokens in use."""
        used, rows, positions = self._pool.used_length, self._pool.rows, self._pool.positions
        keys, values = self.tensors
        keys[rows, :, positions] = key_states[:, :, 0]
        values[rows, :, positions] = value_states[:, :, 0]
        return keys[: len(rows), :, :used], values[: len(rows), :, :used]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError  # it is initialized

    def get_seq_length(self) -> int:
        return self._pool.used_length - 1

    def get_max_length(self) -> int:
        return self._pool.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._pool.used_length, 0


class Tokens(Protocol):
    """The tokens of a sequence. The next token is generated from all of them."""

    prompt: list[int]
    generated: list[int]


class SlotPool[Sequence_: Tokens]:
    """The slots of sequences with at most `capacity` tokens each, those of a shared prefix not counted.

    Attributes:
        sequences: those in use; the sequence at index i has slot i.
        allocated: the slots that have memory: doubled when there are too few, and freed when none is in use.
        used_length: the tokens per slot that the current step computes with.
        rows, positions: the index in the batch of each sequence, and of its next token in its slot: int64 [sequences].
    """

    def __init__(self, model: torch.nn.Module, capacity: int) -> None:
        self.model, self.capacity = model, -(-capacity // MASK_ALIGNMENT) * MASK_ALIGNMENT
        self.device = next(model.parameters()).device
        self.sequences: list[Sequence_] = []
        self.allocated = 0
        self.used_length = 0
        self.rows = self.positions = torch.zeros(0, dtype=torch.int64)
        self._prefixes: list[SharedPrefix | None] = []
        self._layers: list[SlotLayer] = []

    def slots_for(self, count: int) -> int:
        """The slots that have memory once `count` further sequences are in use."""
        needed = len(self.sequences) + count
        return max(self.allocated, 1 << (needed - 1).bit_length() if needed else 0)

    def add(
        self,
        sequences: Sequence[Sequence_],
        tokens: TokenSequences | None = None,
        prefixes: Sequence[SharedPrefix | None] | None = None,
    ) -> list[float | None]:
        """Computes the prompts of further sequences and gives them slots.

        `tokens` are the prompts with references after them, whose mean losses are returned (None without a reference).
        `prefixes` holds the shared prefix of each, which must be shorter than its prompt.
        """
        if tokens is None:
            prompts = [np.asarray(sequence.prompt, dtype=np.int32) for sequence in sequences]
            tokens = TokenSequences.supervised_from(prompts, list(map(len, prompts)))
        first, prefixes = len(self.sequences), [None] * len(sequences) if prefixes is None else list(prefixes)
        nlls: list[float | None] = []
        for batch in prefill_batches(self.model, tokens, PREFILL_TOKENS):
            nlls += batch.nlls
            if not self._layers:
                self._layers = [SlotLayer(self, layer.keys) for layer in batch.cache.layers]
            self._allocate(self.slots_for(len(sequences)))
            rows, batch_prefixes = [first + i for i in batch.indices], [prefixes[i] for i in batch.indices]
            own = _without_prefixes(batch, batch_prefixes)
            own.copy_to([layer.tensors for layer in self._layers], rows, pad_left=False)
        self.sequences += sequences
        self._prefixes += prefixes
        return nlls

    def _allocate(self, slots: int) -> None:
        if slots > self.allocated:
            for layer in self._layers:
                layer.resize(slots)
            self.allocated = slots

    def next_logits(self) -> torch.Tensor:
        """The logits of the tokens that follow the sequences: [sequences, vocabulary]."""
        last = [(sequence.generated or sequence.prompt)[-1] for sequence in self.sequences]
        shared = [prefix.length if prefix else 0 for prefix in self._prefixes]
        lengths = self._own_lengths()
        joined = copy_to_device(np.asarray([last, lengths, shared]), self.device)
        input_ids, self.positions = joined[0], joined[1] - 1
        self.rows = torch.arange(len(lengths), device=self.device)
        self.used_length = min(-(-max(lengths) // MASK_ALIGNMENT) * MASK_ALIGNMENT, self.capacity)
        columns = torch.arange(self.used_length, device=self.device)
        # Additive, in the dtype of the scores: SDPA would convert a mask of bools in every layer.
        mask = torch.zeros((len(lengths), self.used_length), dtype=self._layers[0].keys.dtype, device=self.device)
        mask.masked_fill_(columns > self.positions[:, None], float("-inf"))
        output = self.model(
            input_ids=input_ids[:, None],
            position_ids=(self.positions + joined[2])[:, None],
            attention_mask=mask[:, None, None],
            past_key_values=Cache(layers=self._layers),
            use_cache=True,
            shared_prefixes=self._prefix_rows(),
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _own_lengths(self) -> list[int]:
        """The tokens of each sequence without its shared prefix."""
        return [
            len(sequence.prompt) + len(sequence.generated) - (prefix.length if prefix else 0)
            for sequence, prefix in zip(self.sequences, self._prefixes, strict=True)
        ]

    def _prefix_rows(self) -> list[tuple[SharedPrefix, torch.Tensor]]:
        rows: dict[int, list[int]] = {}
        for row, prefix in enumerate(self._prefixes):
            if prefix is not None:
                rows.setdefault(id(prefix), []).append(row)
        return [
            (cast(SharedPrefix, self._prefixes[members[0]]), torch.tensor(members, device=self.device))
            for members in rows.values()
        ]

    def remove(self, index: int) -> None:
        """Frees the slot of a sequence; the last sequence takes it."""
        length = self._own_lengths()[-1]
        last, prefix = self.sequences.pop(), self._prefixes.pop()
        if index < len(self.sequences):
            for layer in self._layers:
                layer.move(len(self.sequences), index, length)
            self.sequences[index], self._prefixes[index] = last, prefix
        if not self.sequences:
            self.clear()

    def clear(self) -> None:
        """Drops all sequences and their memory."""
        self.sequences, self._prefixes, self._layers, self.allocated = [], [], [], 0


def _without_prefixes(batch: PrefillBatch, prefixes: Sequence[SharedPrefix | None]) -> PrefillBatch:
    """The batch with the tokens after the shared prefix of each sequence. Prefixes without keys and values get them."""
    own_indices = []
    for indices, prefix in zip(batch.token_indices, prefixes, strict=True):
        if prefix is not None and not prefix.keys:
            shared = torch.as_tensor(indices[: prefix.length], device=batch.cache.layers[0].keys.device)
            prefix.keys = [layer.keys[0].index_select(1, shared) for layer in batch.cache.layers]
            prefix.values = [layer.values[0].index_select(1, shared) for layer in batch.cache.layers]
        own_indices.append(indices[prefix.length if prefix else 0 :])
    return replace(batch, token_indices=own_indices)


@dataclass
class _TrialSequence:
    prompt: list[int]
    generated: list[int] = field(default_factory=list)


@torch.inference_mode()
def supports_slots(model: torch.nn.Module) -> bool:
    """Whether decoding in slots gives the logits of packed passes, tried on the probe batch.

    The last tokens of each sequence are decoded, given the true ones before.
    """
    if not supports_packed_prefill(model):
        return False
    probe = probe_batch(model)
    starts = [len(ids) - TRIAL_TOKENS for ids in probe.input_ids]
    shared, single = SharedPrefix(5), SharedPrefix(3)  # the first two sequences start with the same 8 tokens
    trials = [_TrialSequence(ids[:start].tolist()) for ids, start in zip(probe.input_ids, starts, strict=True)]
    try:
        sequences = TokenSequences.supervised_from(probe.input_ids, starts)
        expected = supervised_logits(model, sequences)[0].float().view(len(trials), TRIAL_TOKENS, -1)
        for prefixes in ([None] * len(trials), [shared, shared, single]):
            pool = SlotPool[_TrialSequence](model, max(map(len, probe.input_ids)))
            pool.add(trials, prefixes=prefixes)
            actual = []
            for step in range(TRIAL_TOKENS):
                actual.append(pool.next_logits().float())
                for trial, ids, start in zip(trials, probe.input_ids, starts, strict=True):
                    trial.generated.append(int(ids[start + step]))
            if not outputs_match(torch.stack(actual, dim=1), expected, is_fp32(model)):
                return False
            for trial in trials:
                trial.generated.clear()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # the forward pass takes no mask or positions
    return True
