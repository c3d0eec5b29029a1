"""The sum of the gradients over the processes, which starts while the backward pass is still running.

As in torch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704), gradients are sent in buckets, each as soon as
the backward pass has completed its gradients. DDP itself does not fit: a step here has several backward passes, of
which only the last one completes the gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist

from pipelines.modeling.process_group import ProcessGroup

BUCKET_BYTES = 25 * 2**20
"""The size of a message. Smaller ones start earlier, larger ones use the connection better. (DDP's default.)"""


class GradientReduction:
    """Replaces the gradients of `weights` by their sums over the processes, once per step.

    All processes send the same buckets in the same order, although one may have had no row in this step.
    """

    def __init__(self, process_group: ProcessGroup, weights: Sequence[torch.nn.Parameter]) -> None:
        self.process_group, self.weights = process_group, list(weights)
        self.is_overlapped = process_group.world_size > 1 and not process_group.lockstep
        """Whether sending starts during the backward pass. In lockstep every layer already waits for the others."""
        self.buckets = list(_buckets(self.weights))
        self._bucket_of = {index: number for number, bucket in enumerate(self.buckets) for index in bucket}
        self._is_last_pass = False
        self._is_checked = False
        self._start_step()
        self._hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._on_gradient, index))
            for index, weight in enumerate(self.weights)
            if self.is_overlapped
        ]

    def _start_step(self) -> None:
        self._sent: list[tuple[dist.Work, torch.Tensor]] = []  # for each bucket that was sent, in order
        self._complete: set[int] = set()  # weights whose gradients are complete
        self._num_sent_before_restart = 0
        self._is_accumulated_late = False

    @contextlib.contextmanager
    def last_backward_pass(self, is_last: bool = True) -> Iterator[None]:
        """During the block, in which the gradients are completed, buckets are sent; if not `is_last` nothing is."""
        self._is_last_pass = is_last
        try:
            yield
        finally:
            self._is_last_pass = False

    def restart(self) -> None:
        """The step's gradients are computed again. Those that were sent were complete, and are not sent again."""
        self._complete.clear()
        self._num_sent_before_restart = len(self._sent)

    def _on_gradient(self, index: int, weight: torch.Tensor) -> None:
        if not self._is_last_pass or self._bucket_of[index] < self._num_sent_before_restart:
            return
        if self._bucket_of[index] < len(self._sent):
            self._is_accumulated_late = True
            return
        self._complete.add(index)
        while len(self._sent) < len(self.buckets) and self._complete.issuperset(self.buckets[len(self._sent)]):
            self._send_next()

    def _send_next(self) -> None:
        gradients = [self._gradient(index).reshape(-1) for index in self.buckets[len(self._sent)]]
        flat = torch.cat(gradients)
        self._sent.append((self.process_group.start_all_reduce(flat), flat))

    def _gradient(self, index: int) -> torch.Tensor:
        weight = self.weights[index]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad

    def finish(self, *extra: torch.Tensor) -> None:
        """Completes the sums of the gradients, and replaces each tensor in `extra` by its sum."""
        if self.process_group.world_size == 1:
            return
        while len(self._sent) < len(self.buckets):
            self._send_next()
        for work, _ in self._sent:
            work.wait()
        if self._is_sum_of_all():
            for bucket, (_, flat) in zip(self.buckets, self._sent, strict=True):
                gradients = [self._gradient(index) for index in bucket]
                sums = flat.split([gradient.numel() for gradient in gradients])
                for gradient, total in zip(gradients, sums, strict=True):
                    gradient.copy_(total.view_as(gradient))
        else:
            self.process_group.all_reduce_sum([self._gradient(index) for index in range(len(self.weights))])
        self.process_group.all_reduce_sum(extra)
        self._start_step()

    def _is_sum_of_all(self) -> bool:
        """Whether no gradient was accumulated after it was sent, in any process.

        That happens if activation checkpointing computes a weight in several backward passes of its own. It depends on
        the model only, and is compared once; from then on such a model's gradients are sent after the backward pass.
        """
        if not self.is_overlapped or self._is_checked:
            assert not self._is_accumulated_late, "a gradient was accumulated after it was sent"
            return True
        self._is_checked = True
        (num_late,) = self.process_group.all_reduce_scalars([float(self._is_accumulated_late)])
        if not num_late:
            return True
        self.is_overlapped = False
        for hook in self._hooks:
            hook.remove()
        return False


def _buckets(weights: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Yields the indices of the weights of each bucket, in the order in which a backward pass completes gradients."""
    bucket: list[int] = []
    num_bytes = 0
    for index in reversed(range(len(weights))):
        if bucket and (num_bytes >= BUCKET_BYTES or weights[index].dtype != weights[bucket[0]].dtype):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(index)
        num_bytes += weights[index].nbytes
    if bucket:
        yield bucket


def mark_last[T](items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yields each item, and whether it is the last one."""
    iterator = iter(items)
    item = next(iterator, None)
    while item is not None:
        following = next(iterator, None)
        yield item, following is None
        item = following
