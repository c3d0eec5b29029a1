"""Batches of tokenized examples, and how they are split into smaller batches. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy_import("numpy")  # 0.2 s that loading a config does not need

Span = tuple[int, int]
"""A half-open range (start, end) of token indices within one sequence."""


def num_supervised_tokens(spans: Sequence[Span]) -> int:
    """The number of tokens in `spans`."""
    return sum(end - start for start, end in spans)


def split_prompt[Tokens: Sequence[int]](input_ids: Tokens, spans: Sequence[Span]) -> tuple[Tokens, Tokens]:
    """The prompt and the completion of an evaluation: the tokens before the last supervised span, and those in it.
    Without a span all tokens are the prompt."""
    start, end = spans[-1] if len(spans) else (len(input_ids), len(input_ids))
    return input_ids[:start], input_ids[start:end]  # type: ignore[return-value]  # a slice has the sequence's type


def split_at_spans[Tokens: Sequence[int]](input_ids: Tokens, spans: Sequence[Span]) -> Iterator[tuple[Tokens, bool]]:
    """All tokens in order, in parts of which every token is supervised (True) or none is (False)."""
    previous_end = 0
    for start, end in spans:
        if start > previous_end:
            yield input_ids[previous_end:start], False  # type: ignore[misc]  # a slice has the sequence's type
        yield input_ids[start:end], True  # type: ignore[misc]
        previous_end = end
    if previous_end < len(input_ids):
        yield input_ids[previous_end:], False  # type: ignore[misc]


def supervised_indices(spans: Sequence[Span], length: int) -> np.ndarray:
    """The indices of all supervised tokens in a sequence of `length` tokens, ascending: int64 [supervised tokens].

    Raises ValueError unless the spans are in order, disjoint, not empty and within 1 to `length`. The first token has
    no prediction, so it cannot be supervised.
    """
    previous_end = 1
    for start, end in spans:
        if not previous_end <= start < end <= length:
            raise ValueError(
                f"supervised spans {[tuple(span) for span in spans]} of a sequence of {length} tokens: expected "
                f"disjoint ranges in order, within 1 to {length}"
            )
        previous_end = end
    ranges = [np.arange(start, end) for start, end in spans]
    return ranges[0] if len(ranges) == 1 else np.concatenate([np.empty(0, np.int64), *ranges])


@dataclass(frozen=True)
class TokenSequences:
    """A batch of tokenized examples.

    `input_ids[i]` holds the token ids of sequence i: int32 [length of i], of any length. `supervised_spans[i]` lists
    the ranges of its tokens that the loss counts, in order and disjoint: one for a completion, several for a dialogue
    of which every answer is trained. In Hugging Face's terms, labels are -100 outside of the spans.
    """

    input_ids: Sequence[np.ndarray]
    supervised_spans: Sequence[Sequence[Span]]

    @classmethod
    def supervised_from(cls, input_ids: Sequence[np.ndarray], starts: Sequence[int]) -> TokenSequences:
        """Sequences supervised from `starts[i]` to their end. A start at the end leaves nothing supervised."""
        spans = [
            [(int(start), len(ids))] if start < len(ids) else [] for ids, start in zip(input_ids, starts, strict=True)
        ]
        return cls(input_ids, spans)

    @classmethod
    def concatenate(cls, *batches: TokenSequences) -> TokenSequences:
        """The sequences of all batches, in order."""
        return cls(
            [ids for batch in batches for ids in batch.input_ids],
            [spans for batch in batches for spans in batch.supervised_spans],
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def num_tokens(self) -> int:
        """The number of tokens of all sequences."""
        return sum(map(len, self.input_ids))

    @property
    def num_supervised_tokens(self) -> int:
        """The number of supervised tokens of all sequences."""
        return sum(self.supervised_lengths)

    @cached_property
    def supervised_lengths(self) -> list[int]:
        """The number of supervised tokens of each sequence."""
        return [num_supervised_tokens(spans) for spans in self.supervised_spans]

    @property
    def prompt_lengths(self) -> list[int]:
        """The number of tokens before the last span of each sequence; all of them if nothing is supervised."""
        return [
            spans[-1][0] if len(spans) else len(ids)
            for ids, spans in zip(self.input_ids, self.supervised_spans, strict=True)
        ]

    def supervised_indices(self, index: int) -> np.ndarray:
        """The indices of the supervised tokens of sequence `index`: int64 [supervised tokens]. Raises ValueError."""
        return supervised_indices(self.supervised_spans[index], len(self.input_ids[index]))

    def key(self, index: int) -> bytes:
        """The identity of sequence `index` by content: its spans and its tokens."""
        spans = ",".join(f"{start}-{end}" for start, end in self.supervised_spans[index])
        return spans.encode() + b":" + self.input_ids[index].tobytes()

    def __getitem__(self, part: slice) -> TokenSequences:
        return TokenSequences(self.input_ids[part], self.supervised_spans[part])

    def select(self, indices: Sequence[int]) -> TokenSequences:
        """The sequences at `indices`, in that order."""
        return TokenSequences(
            [self.input_ids[index] for index in indices], [self.supervised_spans[index] for index in indices]
        )


def micro_batches(sequences: TokenSequences, size: int) -> Iterator[TokenSequences]:
    """Slices of `size` sequences, in order; the last may be smaller."""
    for start in range(0, len(sequences), size):
        yield sequences[start : start + size]


def batch_by_tokens(
    sequences: TokenSequences, max_tokens: int, *, count_shared_once: bool = False
) -> Iterator[list[int]]:
    """Indices of consecutive sequences with up to `max_tokens` tokens in total. A longer one is a batch by itself.

    With `count_shared_once`, the tokens at the start that a sequence has in common with the one before it in its batch
    do not count: a pass with shared prefixes computes them once.
    """
    batch: list[int] = []
    num_tokens = 0
    for index, ids in enumerate(sequences.input_ids):
        num_new = len(ids)
        if batch and count_shared_once:
            num_new -= common_prefix_length(sequences.input_ids[index - 1], ids)
        if batch and num_tokens + num_new > max_tokens:
            yield batch
            batch, num_tokens, num_new = [], 0, len(ids)
        batch.append(index)
        num_tokens += num_new
    if batch:
        yield batch


def common_prefix_length(first: np.ndarray, second: np.ndarray) -> int:
    """The number of tokens at the start that two sequences have in common."""
    length = min(len(first), len(second))
    is_different = np.asarray(first[:length]) != np.asarray(second[:length])
    return int(is_different.argmax()) if is_different.any() else length
