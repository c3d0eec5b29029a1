"""Prepared tokens in the shape that Ludwig's trainer asks for: a data set that hands out one optimiser step's rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from ludwig.data.batcher.base import Batcher
from ludwig.data.dataset.base import Dataset

from pipelines.modeling.token_dataset import TokenDataset
from pipelines.modeling.token_sequences import TokenSequences

Sampler = Callable[[int], list[int]]
"""The row numbers of an epoch, given its number."""


class StepBatcher(Batcher):
    """Yields the rows of one optimiser step at a time. The last step of an epoch may be smaller; nothing is dropped."""

    def __init__(self, data: TokenDataset, effective_batch_size: int, sampler: Sampler) -> None:
        self.data = data
        self.effective_batch_size = effective_batch_size
        self.sampler = sampler
        self.steps_per_epoch = math.ceil(len(data) / effective_batch_size)
        self.step = 0
        self.order: list[int] = []

    def set_epoch(self, epoch: int, batch_size: int) -> None:
        self.order = self.sampler(epoch)
        self.step = 0

    def skip(self, steps: int) -> None:
        """Goes on behind the first `steps` steps of the epoch: a resumed run sees the rows it has not seen."""
        self.step = steps

    def next_batch(self) -> TokenSequences:  # Ludwig's own holds arrays by column
        first = self.step * self.effective_batch_size
        self.step += 1
        return self.data.sequences.select(self.order[first : first + self.effective_batch_size])

    def describe_batch(self, limit: int = 16) -> str:
        """file:row of the rows handed out last, for an error."""
        first = (self.step - 1) * self.effective_batch_size
        numbers = self.order[first : first + self.effective_batch_size]
        named = ", ".join(self.data.source_location(number) for number in numbers[:limit])
        return f"{named} and {len(numbers) - limit} more" if len(numbers) > limit else named

    def last_batch(self) -> bool:
        return self.step >= self.steps_per_epoch


class LudwigTokenDataset(Dataset):
    """What Ludwig's trainer is handed for training and validation. Ludwig's preprocessing never sees the rows."""

    def __init__(self, data: TokenDataset, effective_batch_size: int, sampler: Sampler) -> None:
        self.data = data
        self.effective_batch_size = effective_batch_size
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.data)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def in_memory_size_bytes(self) -> int:
        return 4 * self.data.sequences.tokens

    @contextlib.contextmanager
    def initialize_batcher(self, *_: Any, **__: Any) -> Iterator[StepBatcher]:
        yield StepBatcher(self.data, self.effective_batch_size, self.sampler)

    def to_df(self, features: Any = None) -> pd.DataFrame:
        return pd.DataFrame(
            {"tokens": [ids.tolist() for ids in self.data.sequences.input_ids], "task": self.data.tasks}
        )

    def to_scalar_df(self, features: Any = None) -> pd.DataFrame:
        return self.to_df(features)
