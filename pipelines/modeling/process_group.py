"""The processes that train together: each reads some of a step's rows, gradients are added up, all take the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipelines.modeling.packing import Rows


@dataclass(frozen=True)
class Workers:
    """This process, number `rank` among `count`. Alone, every method leaves things as they are."""

    rank: int = 0
    count: int = 1
    bound: bool = False
    """Whether a pass through the model takes all workers, since each holds a part of its weights."""

    @classmethod
    def here(cls) -> Workers:
        """As torch.distributed knows them; alone where there is no group."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if together else cls()

    def part(self, rows: Rows) -> Rows:
        """This worker's share of `rows`: about as many tokens as every other's, in the same order everywhere."""
        if self.count == 1:
            return rows
        shares: list[list[int]] = [[] for _ in range(self.count)]
        tokens = [0] * self.count
        for number in sorted(range(len(rows)), key=lambda number: -len(rows.input_ids[number])):
            least = tokens.index(min(tokens))
            shares[least].append(number)
            tokens[least] += len(rows.input_ids[number])
        return rows.take(sorted(shares[self.rank]))

    def rounds(self, parts: Iterable[Rows], filler: Rows) -> Iterator[tuple[Rows, bool]]:
        """The parts that go through the model here, one after the other, each with True. Bound workers make as many passes as the
        busiest of them: with `filler` and False, which the caller must let count for nothing."""
        parts = list(parts)
        fillers = 0
        if self.bound:
            # Before the first pass: a worker that asked behind its last would wait while others want its weights.
            most = torch.tensor(len(parts), device=self._device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            fillers = int(most) - len(parts)
        yield from ((part, True) for part in parts)
        yield from ((filler, False) for _ in range(fillers))

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Each tensor becomes its sum over the workers, in place; one message for all of a kind."""
        if self.count == 1:
            return
        for dtype in {tensor.dtype: None for tensor in tensors}:
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            message = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(message)
            for tensor, total in zip(alike, message.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the workers."""
        if self.count == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(message)
        return [float(value) for value in message]

    def agreed(self, find: Callable[[], Any]) -> Any:
        """What the coordinator finds, told to all; bound workers look for it together."""
        if self.count == 1:
            return find()
        found = find() if self.rank == 0 or self.bound else None
        told = [found if self.rank == 0 else None]
        dist.broadcast_object_list(told, src=0, device=self._device)
        return told[0]

    def sync(self, weights: Sequence[torch.Tensor]) -> None:
        """The coordinator's weights for all."""
        if self.count > 1:
            for weight in weights:
                dist.broadcast(weight.data, src=0)

    @contextlib.contextmanager
    def coordinator_first(self) -> Iterator[None]:
        """What is measured once and kept in a file: the coordinator measures, the others read. Bound workers measure
        together, and each keeps the same."""
        alone = self.count == 1 or self.bound
        if self.rank and not alone:
            dist.barrier()
        try:
            yield
        finally:
            if not self.rank and not alone:
                dist.barrier()

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
