"""Prefix trees of token sequences: shared prefixes (a system prompt, an instruction, a question) are stored once.

In a causal model the hidden states of a prefix do not depend on what follows it. One forward and backward computation
serves all sequences that share it; its gradient is the sum over them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.modeling.token_sequences import common_prefix_length

MIN_SHARED_PREFIX = 4
"""Shorter prefixes are not shared: an additional segment costs about as much as this many tokens."""


@dataclass(frozen=True)
class PrefixTree:
    """Token sequences as paths in a tree of segments.

    Attributes:
        segments: int32 [length] each, of at least one token.
        prefix_lengths: the number of tokens that precede each segment in its sequences.
        paths: for each sequence, the indices of its segments in order.
    """

    segments: Sequence[np.ndarray]
    prefix_lengths: Sequence[int]
    paths: Sequence[tuple[int, ...]]
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def cached(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """The value of `build()`, which is called once per key: all layers of a pass use the same layout."""
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each segment."""
        return tuple(map(len, self.segments))

    @property
    def input_ids(self) -> np.ndarray:
        """All segments concatenated: int32 [tokens]."""
        return np.concatenate(self.segments)

    @property
    def position_ids(self) -> np.ndarray:
        """The position of each of `input_ids` within its sequences: int64 [tokens]."""
        return np.concatenate(
            [
                prefix_len + np.arange(length)
                for prefix_len, length in zip(self.prefix_lengths, self.lengths, strict=True)
            ]
        )

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """For each segment, the indices of the segments that precede it in its sequences, in order."""
        ancestors = {segment: path[:depth] for path in self.paths for depth, segment in enumerate(path)}
        return tuple(ancestors[segment] for segment in range(len(self.segments)))

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *self.lengths])

    def token_indices(self, sequence: int) -> np.ndarray:
        """The indices of a sequence's tokens in `input_ids`: int64 [length of the sequence]."""
        return np.concatenate(
            [np.arange(self._offsets[segment], self._offsets[segment + 1]) for segment in self.paths[sequence]]
        )


def build_prefix_tree(sequences: Sequence[np.ndarray], *, share_prefixes: bool = True) -> PrefixTree:
    """The prefix tree of sequences, int32 [length] each, of at least one token.

    Without `share_prefixes` every sequence is one segment, in the given order.
    """
    if not share_prefixes or len(sequences) == 1:
        return PrefixTree(sequences, [0] * len(sequences), [(index,) for index in range(len(sequences))])
    sequences = [np.ascontiguousarray(sequence, dtype=np.int32) for sequence in sequences]
    # In the order of their bytes, sequences with a common prefix are neighbors.
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].tobytes())
    common = [
        common_prefix_length(sequences[index], sequences[successor])
        for index, successor in zip(order, order[1:], strict=False)
    ]
    segments: list[np.ndarray] = []
    prefix_lengths: list[int] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)
    # Ranges of `order` to place in the tree, with the tokens and the segments that precede them.
    pending: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(sequences), 0, ())]
    while pending:
        start, end, prefix_len, path = pending.pop()
        is_leaf = end - start == 1
        common_len = min(common[start : end - 1], default=len(sequences[order[start]]))
        if common_len - prefix_len >= MIN_SHARED_PREFIX or (is_leaf and common_len > prefix_len):
            path = (*path, len(segments))
            segments.append(sequences[order[start]][prefix_len:common_len])
            prefix_lengths.append(prefix_len)
            prefix_len = common_len
        if is_leaf:
            paths[order[start]] = path
            continue
        splits = [index + 1 for index in range(start, end - 1) if common[index] == common_len]
        boundaries = [start, *splits, end]
        pending += [(low, high, prefix_len, path) for low, high in zip(boundaries, boundaries[1:], strict=False)]
    return PrefixTree(segments, prefix_lengths, paths)
