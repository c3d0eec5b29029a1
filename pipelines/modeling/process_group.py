"""The processes that train together: each reads some of a step's rows, gradients are added up, all take the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipelines.modeling.token_sequences import TokenSequences


@dataclass(frozen=True)
class ProcessGroup:
    """This process, number `rank` among `count`. Alone, every method leaves things as they are."""

    rank: int = 0
    world_size: int = 1
    lockstep: bool = False
    """Whether a pass through the model takes all workers, since each holds a part of its weights."""

    @classmethod
    def current(cls) -> ProcessGroup:
        """As torch.distributed knows them; alone where there is no group."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if together else cls()

    def shard(self, rows: TokenSequences) -> TokenSequences:
        """This worker's share of `rows`: about as many tokens as every other's, in the same order everywhere."""
        if self.world_size == 1:
            return rows
        shares: list[list[int]] = [[] for _ in range(self.world_size)]
        tokens = [0] * self.world_size
        for number in sorted(range(len(rows)), key=lambda number: -len(rows.input_ids[number])):
            least = tokens.index(min(tokens))
            shares[least].append(number)
            tokens[least] += len(rows.input_ids[number])
        return rows.select(sorted(shares[self.rank]))

    def lockstep_batches(
        self, parts: Iterable[TokenSequences], filler: TokenSequences
    ) -> Iterator[tuple[TokenSequences, bool]]:
        """The parts that go through the model here, one after the other, each with True. Bound workers make as many passes as the
        busiest of them: with `filler` and False, which the caller must let count for nothing."""
        parts = list(parts)
        fillers = 0
        if self.lockstep:
            # Before the first pass: a worker that asked behind its last would wait while others want its weights.
            most = torch.tensor(len(parts), device=self._device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            fillers = int(most) - len(parts)
        yield from ((part, True) for part in parts)
        yield from ((filler, False) for _ in range(fillers))

    def all_reduce_sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Each tensor becomes its sum over the workers, in place; one message for all of a kind."""
        if self.world_size == 1:
            return
        for dtype in {tensor.dtype: None for tensor in tensors}:
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            message = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(message)
            for tensor, total in zip(alike, message.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def all_reduce_scalars(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the workers."""
        if self.world_size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(message)
        return [float(value) for value in message]

    def broadcast_from_rank0(self, find: Callable[[], Any]) -> Any:
        """What the coordinator finds, told to all; bound workers look for it together."""
        if self.world_size == 1:
            return find()
        found = find() if self.rank == 0 or self.lockstep else None
        told = [found if self.rank == 0 else None]
        dist.broadcast_object_list(told, src=0, device=self._device)
        return told[0]

    def broadcast_parameters(self, weights: Sequence[torch.Tensor]) -> None:
        """The coordinator's weights for all."""
        if self.world_size > 1:
            for weight in weights:
                dist.broadcast(weight.data, src=0)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """What is measured once and kept in a file: the coordinator measures, the others read. Bound workers measure
        together, and each keeps the same."""
        alone = self.world_size == 1 or self.lockstep
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


SINGLE_PROCESS = ProcessGroup()
"""The group of a training without torch.distributed."""
