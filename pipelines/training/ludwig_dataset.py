"""Ludwig's interface to tokenized examples: a data set that yields the rows of one optimizer step at a time."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from ludwig.data.batcher.base import Batcher
from ludwig.data.dataset.base import Dataset

from pipelines.config.job import Job
from pipelines.config.lr_schedules import effective_batch_size
from pipelines.data.mixing import mixing_weights, sample_epoch
from pipelines.data.tokenize_rows import open_split
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.run_folder import Run

Sampler = Callable[[int], list[int]]
"""Maps the number of an epoch to the indices of its rows, in the order of training."""


class StepBatcher(Batcher):
    """Yields the rows of one optimizer step at a time. The last step of an epoch may be smaller; no row is dropped."""

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

    def seek(self, steps: int) -> None:
        """Continues after the first `steps` steps of the epoch: a resumed training gets the remaining rows."""
        self.step = steps

    def next_batch(self) -> TokenSequences:  # Ludwig's own returns arrays by column
        self.step += 1
        return self.data.sequences.select(self._batch_indices())

    def describe_batch(self, limit: int = 16) -> str:
        """Returns the source locations (file:row) of the last batch, at most `limit` of them, for an error message."""
        indices = self._batch_indices()
        locations = ", ".join(self.data.source_location(index) for index in indices[:limit])
        return f"{locations} and {len(indices) - limit} more" if len(indices) > limit else locations

    def _batch_indices(self) -> list[int]:
        start = (self.step - 1) * self.effective_batch_size
        return self.order[start : start + self.effective_batch_size]

    def last_batch(self) -> bool:
        return self.step >= self.steps_per_epoch


class LudwigTokenDataset(Dataset):
    """The training or validation set that Ludwig's trainer gets. Ludwig's preprocessing does not see the rows.

    `effective_batch_size` is the number of rows of an optimizer step, over all micro-batches and processes.
    """

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
        return 4 * self.data.sequences.num_tokens

    @contextlib.contextmanager
    def initialize_batcher(self, *_: Any, **__: Any) -> Iterator[StepBatcher]:
        yield StepBatcher(self.data, self.effective_batch_size, self.sampler)

    def to_df(self, features: Any = None) -> pd.DataFrame:
        tokens = [input_ids.tolist() for input_ids in self.data.sequences.input_ids]
        return pd.DataFrame({"tokens": tokens, "task": self.data.tasks})

    def to_scalar_df(self, features: Any = None) -> pd.DataFrame:
        return self.to_df(features)


def load_datasets(job: Job, run: Run) -> tuple[LudwigTokenDataset, LudwigTokenDataset | None]:
    """Returns the training set, whose tasks are mixed as configured, and the validation set, None if it has no rows."""
    trainer, pipeline = job.trainer, job.pipeline
    batch_size = effective_batch_size(trainer)
    training, validation = (
        TokenDataset.from_table(open_split(run.path("data"), split)) for split in ("train", "validation")
    )
    task_weights = {name: task.weight for name, task in pipeline.tasks.items()}
    weights = mixing_weights(Counter(training.tasks), task_weights, pipeline.mix, pipeline.temperature)
    shuffle = bool(trainer.get("should_shuffle", True))

    def sampler(epoch: int) -> list[int]:
        return sample_epoch(training.tasks, weights, pipeline.seed, epoch, shuffle)

    training_set = LudwigTokenDataset(training, batch_size, sampler)
    file_order = list(range(len(validation)))
    validation_set = LudwigTokenDataset(validation, batch_size, lambda epoch: file_order)
    return training_set, validation_set if len(validation) else None
