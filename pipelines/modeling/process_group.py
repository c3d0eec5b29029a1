"""Data-parallel training: sharding a batch over processes, and collective operations of torch.distributed.

Every process computes the gradients of its shard of a step's sequences. Gradients are all-reduced once per step, so all
processes take the same optimizer step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipelines.modeling.token_sequences import TokenSequences

MAX_WAIT = timedelta(days=7)
"""How long a process waits for work that only rank 0 does. The default group, through which gradients go, gives up
after 10 to 30 minutes. A process that dies ends the wait at once."""

LARGE_TENSOR = 2**20
"""The elements from which on a message of its own is faster than a copy into one with others."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as seen by the one with this `rank`. In a single process all methods are
    local.

    `lockstep`: whether every forward and backward pass involves all processes, because each holds a shard of the
    weights. All then run the same number of passes.
    """

    rank: int = 0
    world_size: int = 1
    lockstep: bool = False

    @classmethod
    def current(cls) -> ProcessGroup:
        """The default group of torch.distributed; a single process if there is none."""
        is_distributed = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if is_distributed else cls()

    def shard(self, sequences: TokenSequences) -> TokenSequences:
        """The sequences of this process, in their order; every process has about the same number of tokens.

        May be empty. The shards of all processes hold every sequence once.
        """
        return sequences if self.world_size == 1 else sequences.select(self.shard_indices(sequences))

    def shard_indices(self, sequences: TokenSequences) -> list[int]:
        """The indices of the sequences of `shard`, ascending."""
        shards: list[list[int]] = [[] for _ in range(self.world_size)]
        num_tokens = [0] * self.world_size
        for index in sorted(range(len(sequences)), key=lambda index: -len(sequences.input_ids[index])):
            smallest = num_tokens.index(min(num_tokens))
            shards[smallest].append(index)
            num_tokens[smallest] += len(sequences.input_ids[index])
        return sorted(shards[self.rank])

    def lockstep_batches[Batch](self, batches: Iterable[Batch], dummy_batch: Batch) -> Iterator[tuple[Batch, bool]]:
        """Each batch with True, then, in lockstep, `dummy_batch` with False until all processes have had equally many.

        The caller must run a dummy batch through the model and weight its loss with 0.
        """
        batches = list(batches)
        num_dummies = 0
        if self.lockstep:
            # Before the first batch: after its last one a process would wait while the others need its weights.
            max_batches = torch.tensor(len(batches), device=self._device)
            dist.all_reduce(max_batches, dist.ReduceOp.MAX)
            num_dummies = int(max_batches) - len(batches)
        yield from ((batch, True) for batch in batches)
        yield from ((dummy_batch, False) for _ in range(num_dummies))

    def all_reduce_sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place, with one message per dtype.

        A large tensor is a message by itself, and is not copied.
        """
        if self.world_size == 1:
            return
        small = []
        for tensor in tensors:
            if tensor.numel() >= LARGE_TENSOR and tensor.is_contiguous():
                dist.all_reduce(tensor)
            else:
                small.append(tensor)
        for dtype in {tensor.dtype: None for tensor in small}:
            same_dtype = [tensor for tensor in small if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same_dtype])
            dist.all_reduce(flat)
            sums = flat.split([tensor.numel() for tensor in same_dtype])
            for tensor, reduced in zip(same_dtype, sums, strict=True):
                tensor.copy_(reduced.view_as(tensor))

    def start_all_reduce(self, tensor: torch.Tensor) -> dist.Work:
        """Starts to replace a tensor by its sum over several processes, in place. It is complete after `wait()`."""
        work: dist.Work = dist.all_reduce(tensor, async_op=True)
        return work

    def is_any(self, value: bool) -> bool:
        """Whether `value` is true in at least one process."""
        return any(self.all_reduce_scalars([value]))

    def all_reduce_scalars(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def broadcast_from_rank0(self, compute: Callable[[], Any]) -> Any:
        """The value of `compute()` in rank 0, for all processes. In lockstep the others call it too, for its passes."""
        if self.world_size == 1:
            return compute()
        group = _patient_group(dist.group.WORLD)
        value = compute() if self.rank == 0 or self.lockstep else None
        message = [value if self.rank == 0 else None]
        dist.broadcast_object_list(message, src=0, group=group, device=torch.device("cpu"))
        return message[0]

    def broadcast_parameters(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces parameters by those of rank 0, in place."""
        if self.world_size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Runs the block in rank 0 before the others, which then find its results cached.

        No process leaves the block before all have run it: on a node with a cache of its own, work is repeated.
        In lockstep all processes run it at the same time.
        """
        if self.world_size == 1 or self.lockstep:
            yield
            return
        group = _patient_group(dist.group.WORLD)
        if self.rank:
            dist.barrier(group)
        try:
            yield
        finally:
            if not self.rank:
                dist.barrier(group)
        dist.barrier(group)

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@functools.cache
def _patient_group(world: Any) -> Any:
    """A second group of the processes of `world`, over TCP, in which a wait may take as long as MAX_WAIT.

    The first call is a collective operation.
    """
    return dist.new_group(backend="gloo", timeout=MAX_WAIT)


SINGLE_PROCESS = ProcessGroup()
"""The group of a training without torch.distributed."""
