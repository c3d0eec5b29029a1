"""Prepared rows as the engine takes them: tokens where they lie on disk, each row with its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.console.activity import doing
from pipelines.modeling.packing import PACK_TOKENS, TokenSequences, batch_by_tokens, mean_loss_per_sequence
from pipelines.modeling.process_group import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class TokenDataset:
    """Tokenised rows with the task that each belongs to."""

    sequences: TokenSequences
    tasks: Sequence[str]
    table: pa.Table | None = None
    """Where the rows are from, column `file` and `row`."""

    @classmethod
    def from_table(cls, table: pa.Table) -> TokenDataset:
        """Of a table with input_ids, supervised_from and task; the tokens stay where they are, on disk for a mapped file."""
        encoded = table["task"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        tasks = [names[number] for number in encoded.indices.to_pylist()]
        return cls(TokenSequences(TokenColumn(table["input_ids"]), table["supervised_from"].to_pylist()), tasks, table)

    def source_location(self, index: int) -> str:
        """file:row of a row."""
        return f"{self.table['file'][index]}:{self.table['row'][index]}" if self.table is not None else str(index)

    def __len__(self) -> int:
        return len(self.sequences)


class TokenColumn(Sequence[np.ndarray]):
    """A column of token lists as int32 arrays, each a view of the column's own memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.values = [np.asarray(chunk.values) for chunk in chunks]
        self.offsets = [np.asarray(chunk.offsets) for chunk in chunks]
        self.starts = np.cumsum([0, *map(len, chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        chunk = int(np.searchsorted(self.starts, number, side="right")) - 1
        first, end = self.offsets[chunk][number - self.starts[chunk] :][:2]
        return self.values[chunk][first:end]


def validation_losses(
    model: torch.nn.Module, data: TokenDataset, process_group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """{"loss": mean over all supervised tokens, "tasks": {task: the same for its rows}}, in nats per token."""
    mine = range(process_group.rank, len(data), process_group.world_size)
    rows = data.sequences.select(mine)
    sums: dict[str, float] = dict.fromkeys(data.tasks, 0.0)
    counts: dict[str, float] = dict.fromkeys(data.tasks, 0)
    parts = [rows.select(numbers) for numbers in batch_by_tokens(rows, PACK_TOKENS)]
    means: list[float] = []
    with doing("loss of the validation rows", len(rows)) as activity:
        for part, real in process_group.lockstep_batches(parts, data.sequences[0:1]):
            found = mean_loss_per_sequence(model, part)
            means += found if real else ()
            activity.advance(len(found) if real else 0)
    for number, mean, length in zip(mine, means, rows.supervised_lengths, strict=True):
        sums[data.tasks[number]] += mean * length
        counts[data.tasks[number]] += length
    sums = dict(zip(sums, process_group.all_reduce_scalars(list(sums.values())), strict=True))
    counts = dict(zip(counts, process_group.all_reduce_scalars(list(counts.values())), strict=True))
    return {
        "loss": sum(sums.values()) / sum(counts.values()),
        "tasks": {task: sums[task] / counts[task] for task in sums},
    }
