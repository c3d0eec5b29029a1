"""Prepared tokens in the shape that Ludwig's trainer asks for: a data set that hands out one optimiser step's rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from ludwig.data.batcher.base import Batcher
from ludwig.data.dataset.base import Dataset

from pipelines.modeling.packing import TokenSequences
from pipelines.modeling.token_dataset import TokenDataset

EpochOrder = Callable[[int], list[int]]
"""The row numbers of an epoch, given its number."""


class StepBatcher(Batcher):
    """Yields the rows of one optimiser step at a time. The last step of an epoch may be smaller; nothing is dropped."""

    def __init__(self, data: TokenDataset, rows_per_step: int, epoch_order: EpochOrder) -> None:
        self.data = data
        self.rows_per_step = rows_per_step
        self.epoch_order = epoch_order
        self.steps_per_epoch = math.ceil(len(data) / rows_per_step)
        self.step = 0
        self.order: list[int] = []

    def set_epoch(self, epoch: int, batch_size: int) -> None:
        self.order = self.epoch_order(epoch)
        self.step = 0

    def skip(self, steps: int) -> None:
        """Goes on behind the first `steps` steps of the epoch: a resumed run sees the rows it has not seen."""
        self.step = steps

    def next_batch(self) -> TokenSequences:  # Ludwig's own holds arrays by column
        first = self.step * self.rows_per_step
        self.step += 1
        return self.data.sequences.select(self.order[first : first + self.rows_per_step])

    def places(self, most: int = 16) -> str:
        """file:row of the rows handed out last, for an error."""
        first = (self.step - 1) * self.rows_per_step
        numbers = self.order[first : first + self.rows_per_step]
        named = ", ".join(self.data.source_location(number) for number in numbers[:most])
        return f"{named} and {len(numbers) - most} more" if len(numbers) > most else named

    def last_batch(self) -> bool:
        return self.step >= self.steps_per_epoch


class LudwigTokenDataset(Dataset):
    """What Ludwig's trainer is handed for training and validation. Ludwig's preprocessing never sees the rows."""

    def __init__(self, data: TokenDataset, rows_per_step: int, epoch_order: EpochOrder) -> None:
        self.data = data
        self.rows_per_step = rows_per_step
        self.epoch_order = epoch_order

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
        yield StepBatcher(self.data, self.rows_per_step, self.epoch_order)

    def to_df(self, features: Any = None) -> pd.DataFrame:
        return pd.DataFrame(
            {"tokens": [ids.tolist() for ids in self.data.sequences.input_ids], "task": self.data.tasks}
        )

    def to_scalar_df(self, features: Any = None) -> pd.DataFrame:
        return self.to_df(features)
