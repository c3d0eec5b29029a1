"""Tokenized examples in a memory-mapped Arrow table, and the validation loss over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.console.activity import track_activity
from pipelines.modeling.memory import split_tokens
from pipelines.modeling.packing import PACK_TOKENS, sequence_mean_losses_of_batch
from pipelines.modeling.process_group import SINGLE_PROCESS, ProcessGroup
from pipelines.modeling.token_sequences import Span, TokenSequences, batch_by_tokens


@dataclass(frozen=True)
class TokenDataset:
    """Token sequences with the task of each."""

    sequences: TokenSequences
    tasks: Sequence[str]
    table: pa.Table | None = None
    """The table that the sequences come from, with the columns `file` and `row` of their sources."""

    @classmethod
    def from_table(cls, table: pa.Table) -> TokenDataset:
        """A view of a table with the columns task, input_ids and supervised_spans. The tokens are not copied: those
        of a memory-mapped file stay on disk."""
        encoded = table["task"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        tasks = [names[code] for code in encoded.indices.to_pylist()]
        sequences = TokenSequences(TokenColumn(table["input_ids"]), SpanColumn(table["supervised_spans"]))
        return cls(sequences, tasks, table)

    def source_location(self, index: int) -> str:
        """`file:row` of the example at `index`; its index if there is no table."""
        return f"{self.table['file'][index]}:{self.table['row'][index]}" if self.table is not None else str(index)

    def __len__(self) -> int:
        return len(self.sequences)


class _ListColumn[T](Sequence[T]):
    """A column of lists as a sequence, each list read from the column's memory when it is accessed."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.values = [self._values(chunk) for chunk in chunks]
        self.offsets = [np.asarray(chunk.offsets) for chunk in chunks]
        self.starts = np.cumsum([0, *map(len, chunks)])

    def _values(self, chunk: pa.ListArray) -> np.ndarray:
        """The lists of a chunk, joined, without a copy."""
        return np.asarray(chunk.values)

    def _list(self, values: np.ndarray) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[item] for item in range(len(self))[index]]
        index = range(len(self))[index]
        chunk = int(np.searchsorted(self.starts, index, side="right")) - 1
        start, end = self.offsets[chunk][index - self.starts[chunk] :][:2]
        return self._list(self.values[chunk][start:end])


class TokenColumn(_ListColumn[np.ndarray]):
    """A column of token ids: int32 [tokens] per sequence, a view of the column's memory."""

    def _list(self, values: np.ndarray) -> np.ndarray:
        return values


class SpanColumn(_ListColumn[list[Span]]):
    """A column of lists of (start, end), stored as fixed-size lists of two int32."""

    def _values(self, chunk: pa.ListArray) -> np.ndarray:
        return np.asarray(chunk.values.values).reshape(-1, 2)

    def _list(self, values: np.ndarray) -> list[Span]:
        return [(start, end) for start, end in values.tolist()]


def validation_losses(
    model: torch.nn.Module, dataset: TokenDataset, process_group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """The mean loss over all supervised tokens, in nats per token, and the same over those of each task:
    {"loss": float, "tasks": {task: float}}. Each process evaluates every `world_size`-th sequence."""
    own_indices = range(process_group.rank, len(dataset), process_group.world_size)
    sequences = dataset.sequences.select(own_indices)
    sums: dict[str, float] = dict.fromkeys(dataset.tasks, 0.0)
    counts: dict[str, float] = dict.fromkeys(dataset.tasks, 0)
    batches = [sequences.select(indices) for indices in batch_by_tokens(sequences, PACK_TOKENS)]
    means: list[float] = []
    with track_activity("loss of the validation rows", len(sequences)) as activity:
        splitter = split_tokens("the validation loss", can_split=not process_group.lockstep)
        for batch, is_real in process_group.lockstep_batches(batches, dataset.sequences[0:1]):
            for _, part_means in splitter.map(partial(sequence_mean_losses_of_batch, model), batch):
                means += part_means if is_real else ()
                activity.advance(len(part_means) if is_real else 0)
    for index, mean, length in zip(own_indices, means, sequences.supervised_lengths, strict=True):
        sums[dataset.tasks[index]] += mean * length
        counts[dataset.tasks[index]] += length
    sums = dict(zip(sums, process_group.all_reduce_scalars(list(sums.values())), strict=True))
    counts = dict(zip(counts, process_group.all_reduce_scalars(list(counts.values())), strict=True))
    return {
        "loss": sum(sums.values()) / sum(counts.values()),
        "tasks": {task: sums[task] / counts[task] for task in sums},
    }
