"""Rows end to end, and what several of them begin with only once: a system prompt, a task's instruction, a question.

A causal model makes the same of a beginning whatever follows it, so one reading serves all rows that share it, forward and
backward: its gradient is the sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MIN_SHARED_PREFIX = 4
"""Fewer tokens than this are read again: another segment costs about as much."""


@dataclass(frozen=True)
class PrefixTree:
    """Segments of tokens, laid end to end, and for each row the segments it consists of, in order.

    `segments[s]` int32 of any length above 0; `depths[s]` tokens come before it in its rows; a row is its `paths[row]`.
    """

    segments: Sequence[np.ndarray]
    prefix_lengths: Sequence[int]
    paths: Sequence[tuple[int, ...]]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.segments))

    @property
    def input_ids(self) -> np.ndarray:
        """int32 [tokens]"""
        return np.concatenate(self.segments)

    @property
    def position_ids(self) -> np.ndarray:
        """int64 [tokens]: of each token within its rows."""
        return np.concatenate(
            [depth + np.arange(length) for depth, length in zip(self.prefix_lengths, self.lengths, strict=True)]
        )

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """For each segment those that come before it in its rows, in order."""
        found = {segment: path[:place] for path in self.paths for place, segment in enumerate(path)}
        return tuple(found[segment] for segment in range(len(self.segments)))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.lengths])

    def token_indices(self, row: int) -> np.ndarray:
        """int64 [tokens of the row]: where its tokens stand in `input_ids`."""
        return np.concatenate(
            [np.arange(self._starts[segment], self._starts[segment + 1]) for segment in self.paths[row]]
        )


def build_prefix_tree(rows: Sequence[np.ndarray], *, share_prefixes: bool = True) -> PrefixTree:
    """A layout of `rows`, each int32 of any length above 0; without `share_prefixes` a segment a row, in order."""
    if not share_prefixes or len(rows) == 1:
        return PrefixTree(rows, [0] * len(rows), [(number,) for number in range(len(rows))])
    rows = [np.ascontiguousarray(row, dtype=np.int32) for row in rows]
    # Sorted by their bytes, rows that begin alike stand together.
    order = sorted(range(len(rows)), key=lambda number: rows[number].tobytes())
    shared = [_common(rows[one], rows[next_one]) for one, next_one in zip(order, order[1:], strict=False)]
    segments: list[np.ndarray] = []
    prefix_lengths: list[int] = []
    paths: list[tuple[int, ...]] = [()] * len(rows)
    # Parts of `order` still to lay out: first, end, how many tokens lie before, and the segments that hold those.
    parts: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(rows), 0, ())]
    while parts:
        first, end, depth, path = parts.pop()
        common = min(shared[first : end - 1], default=len(rows[order[first]]))
        if common - depth >= MIN_SHARED_PREFIX or (end - first == 1 and common > depth):
            path = (*path, len(segments))
            segments.append(rows[order[first]][depth:common])
            prefix_lengths.append(depth)
            depth = common
        if end - first == 1:
            paths[order[first]] = path
            continue
        cuts = [first, *(place + 1 for place in range(first, end - 1) if shared[place] == common), end]
        parts += [(low, high, depth, path) for low, high in zip(cuts, cuts[1:], strict=False)]
    return PrefixTree(segments, prefix_lengths, paths)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
