"""Prepared rows as the engine takes them: tokens where they lie on disk, each row with its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.console.activity import doing
from pipelines.modeling.packing import PACK_TOKENS, Rows, pack_means, packs
from pipelines.modeling.process_group import Workers


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows with the task that each belongs to."""

    rows: Rows
    tasks: Sequence[str]
    table: pa.Table | None = None
    """Where the rows are from, column `file` and `row`."""

    @classmethod
    def of(cls, table: pa.Table) -> TokenRows:
        """Of a table with input_ids, supervised_from and task; the tokens stay where they are, on disk for a mapped file."""
        encoded = table["task"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        tasks = [names[number] for number in encoded.indices.to_pylist()]
        return cls(Rows(TokenColumn(table["input_ids"]), table["supervised_from"].to_pylist()), tasks, table)

    def place(self, number: int) -> str:
        """file:row of a row."""
        return f"{self.table['file'][number]}:{self.table['row'][number]}" if self.table is not None else str(number)

    def __len__(self) -> int:
        return len(self.rows)


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


def validation_losses(model: torch.nn.Module, data: TokenRows, workers: Workers = Workers()) -> dict[str, Any]:  # noqa: B008
    """{"loss": mean over all supervised tokens, "tasks": {task: the same for its rows}}, in nats per token."""
    mine = range(workers.rank, len(data), workers.count)
    rows = data.rows.take(mine)
    sums: dict[str, float] = dict.fromkeys(data.tasks, 0.0)
    counts: dict[str, float] = dict.fromkeys(data.tasks, 0)
    parts = [rows.take(numbers) for numbers in packs(rows, PACK_TOKENS)]
    means: list[float] = []
    with doing("loss of the validation rows", len(rows)) as activity:
        for part, real in workers.rounds(parts, data.rows[0:1]):
            found = pack_means(model, part)
            means += found if real else ()
            activity.advance(len(found) if real else 0)
    for number, mean, length in zip(mine, means, rows.supervised_lengths, strict=True):
        sums[data.tasks[number]] += mean * length
        counts[data.tasks[number]] += length
    sums = dict(zip(sums, workers.total(list(sums.values())), strict=True))
    counts = dict(zip(counts, workers.total(list(counts.values())), strict=True))
    return {
        "loss": sum(sums.values()) / sum(counts.values()),
        "tasks": {task: sums[task] / counts[task] for task in sums},
    }
