"""Greedy decoding of many prompts in a `SlotPool`, for CPUs: prefixes that prompts share are computed and read once.

The examples of a few-shot prompt are such a prefix, and so are a system prompt and the instruction of a task. Tokens
are those of greedy `generate`, up to the rounding of the dtype.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from pipelines.evaluation.slot_decoding import REFILL_FRACTION, cache_bytes, cache_bytes_per_token
from pipelines.evaluation.slot_pool import SlotPool
from pipelines.modeling.decode_attention import SharedPrefix
from pipelines.modeling.memory import OutOfMemory, attempt, out_of_memory_error
from pipelines.modeling.token_sequences import TokenSequences

MAX_SLOTS = 128
"""Sequences that are decoded at once. With more, a token takes no less time."""
MIN_SPARED_TOKENS = 1024
"""A prefix whose tokens are cached that many times less is shared. For fewer, its own products would take longer."""
MAX_DEPTH = 32
"""Levels of prefixes within prefixes among which groups are looked for."""


@dataclass
class GreedySequence:
    """A prompt and what was generated from it.

    Attributes:
        index: its place among the prompts.
        limit: the most tokens of the completion.
    """

    index: int
    prompt: list[int]
    limit: int
    prefix: SharedPrefix | None
    generated: list[int] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        """The tokens that its slot must hold."""
        return len(self.prompt) + self.limit - (self.prefix.length if self.prefix else 0)

    def forget_tokens(self) -> None:
        """Drops what was generated, and the keys and values of the shared prefix."""
        self.generated = []
        if self.prefix:
            self.prefix.keys = self.prefix.values = ()


def decode_in_pool(
    model: torch.nn.Module,
    sequences: TokenSequences,
    limits: Sequence[int],
    stop_token_ids: Sequence[int],
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[list[int]], list[float | None]]:
    """Completes the prompt of each sequence by at most `limits` tokens, up to and including the first stop token.

    Also returns the mean loss of each reference, in nats per token; None for a sequence without one. `progress` is
    called with the number of sequences that have ended. Raises MachineError if one does not fit into memory.
    """
    prompts = [ids[:length].tolist() for ids, length in zip(sequences.input_ids, sequences.prompt_lengths, strict=True)]
    groups = find_shared_prefixes(prompts)
    waiting = _in_order(prompts, limits, groups)
    results: dict[int, tuple[list[int], float | None]] = {}
    max_slots = MAX_SLOTS
    while waiting:
        capacity = max(sequence.capacity for sequence in waiting)
        slots = max(1, min(max_slots, cache_bytes(model) // (capacity * cache_bytes_per_token(model))))
        pool = SlotPool[GreedySequence](model, capacity)
        decode = partial(_decode, pool, slots, sequences, waiting, set(stop_token_ids), results, progress)
        outcome = attempt(decode)
        for sequence in waiting:
            sequence.forget_tokens()
        if isinstance(outcome, OutOfMemory):
            if slots == 1:
                raise out_of_memory_error("completions", outcome, num_tokens=capacity)
            max_slots = slots // 2
        waiting = [sequence for sequence in waiting if sequence.index not in results]
        del pool, decode  # before the next one allocates its cache
    tokens, nlls = zip(*(results[index] for index in range(len(prompts))), strict=True)
    return list(tokens), list(nlls)


@torch.inference_mode()
def _decode(
    pool: SlotPool[GreedySequence],
    slots: int,
    sequences: TokenSequences,
    ordered: Sequence[GreedySequence],
    stop_token_ids: set[int],
    results: dict[int, tuple[list[int], float | None]],
    progress: Callable[[int], None],
) -> None:
    """Completes the sequences in `ordered` and puts the tokens and the loss of each into `results` when it ends."""
    waiting, nlls = deque(ordered), dict[int, float | None]()
    while waiting or pool.sequences:
        num_free = slots - len(pool.sequences)
        if waiting and num_free >= REFILL_FRACTION * slots:
            joining = [waiting.popleft() for _ in range(min(num_free, len(waiting)))]
            indices = [sequence.index for sequence in joining]
            scores = pool.add(joining, sequences.select(indices), [sequence.prefix for sequence in joining])
            nlls |= zip(indices, scores, strict=True)
        num_ended = 0
        tokens = pool.next_logits().argmax(-1).tolist()
        for row in reversed(range(len(tokens))):
            sequence = pool.sequences[row]
            sequence.generated.append(tokens[row])
            if tokens[row] in stop_token_ids or len(sequence.generated) == sequence.limit:
                results[sequence.index] = (list(sequence.generated), nlls[sequence.index])
                pool.remove(row)
                num_ended += 1
                if not any(other.prefix is sequence.prefix for other in [*pool.sequences, *list(waiting)[:1]]):
                    sequence.forget_tokens()
        if num_ended:
            progress(num_ended)


def _in_order(
    prompts: Sequence[list[int]], limits: Sequence[int], groups: Sequence[tuple[int, list[int]]]
) -> list[GreedySequence]:
    """The sequences of a group after each other, since a prefix is computed in every pass over some of them; within a
    group the longest first, so that those in the pool have similar lengths."""
    rank, prefixes = [len(groups)] * len(prompts), list[SharedPrefix | None]([None] * len(prompts))
    for number, (length, members) in enumerate(groups):
        prefix = SharedPrefix(length)
        for index in members:
            rank[index], prefixes[index] = number, prefix
    sequences = [GreedySequence(i, prompt, limits[i], prefixes[i]) for i, prompt in enumerate(prompts)]
    return sorted(sequences, key=lambda sequence: (rank[sequence.index], -sequence.capacity, sequence.index))


def find_shared_prefixes(prompts: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """Disjoint groups of prompts with a common prefix, which spare the most tokens: (length, indices of the prompts).

    The prefix is shorter than each of its prompts, so that the first token is generated from a token after it.
    """
    return _best_groups(prompts, sorted(range(len(prompts)), key=lambda index: prompts[index]), 0, 0)[1]


def _best_groups(
    prompts: Sequence[list[int]], indices: list[int], start: int, depth: int
) -> tuple[int, list[tuple[int, list[int]]]]:
    """The tokens that are spared, and the groups among the sorted `indices`, which have `start` tokens in common."""
    first, last, length = prompts[indices[0]], prompts[indices[-1]], start
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    shared = min(length, len(first) - 1)  # the first is the shortest if it is the prefix of the others
    spared = (len(indices) - 1) * shared
    if spared < MIN_SPARED_TOKENS:
        spared = 0
    groups = [(shared, indices)] if spared else []
    children: dict[int, list[int]] = {}
    for index in indices:
        if len(prompts[index]) > length:
            children.setdefault(prompts[index][length], []).append(index)
    if depth < MAX_DEPTH:
        found = [_best_groups(prompts, members, length, depth + 1) for members in children.values()]
        spared_by_children = sum(child_spared for child_spared, _ in found)
        if spared_by_children > spared:
            return spared_by_children, [group for _, child_groups in found for group in child_groups]
    return spared, groups
