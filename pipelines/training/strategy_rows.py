"""The gradients of the strategies' losses on their own rows, in micro-batches that get smaller if memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.memory import retry_smaller
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.gradients import GradientSnapshot, all_reduce_gradients
from pipelines.training.micro_batches import training_memory_error


def add_own_row_gradients(
    strategies: Sequence[Strategy],
    weights: Sequence[torch.nn.Parameter],
    loss_denominator: int,
    backward: Callable[[torch.Tensor], None],
    history: dict[str, Any],
    process_group: ProcessGroup,
) -> list[torch.Tensor]:
    """Adds the gradients of `losses_on_own_rows` of each strategy, summed over the processes.

    Returns copies of the gradients before, which are the same in all processes.

    If memory runs out, it starts over with smaller micro-batches. Their size is in `history["strategy_micro_batch"]`,
    so that a resumed training sums the same values in the same order. Raises MachineError if they cannot be smaller,
    or if the processes must have the same, in lockstep.
    """
    before, lockstep = GradientSnapshot(weights), process_group.lockstep

    def add() -> None:
        _limit_micro_batches(strategies, history)
        for strategy in strategies:
            losses = strategy.losses_on_own_rows(loss_denominator)
            while True:
                with autocast(weights[0].device):
                    loss = next(losses, None)
                if loss is None:
                    break
                backward(loss)

    def use_smaller() -> bool:
        if lockstep or not _halve_micro_batches(strategies, history):
            return False
        before.restore()
        return True

    retry_smaller(add, use_smaller, lambda failure: training_memory_error(failure, None, lockstep))
    if any(strategy.has_own_rows for strategy in strategies):
        all_reduce_gradients(process_group, weights, already_reduced=before.gradients)
    return before.gradients


def _limit_micro_batches(strategies: Sequence[Strategy], history: Mapping[str, Any]) -> None:
    for strategy in strategies:
        strategy.micro_batch_size = history.get("strategy_micro_batch", strategy.micro_batch_size)


def _halve_micro_batches(strategies: Sequence[Strategy], history: dict[str, Any]) -> bool:
    """Returns False if a micro-batch has one row already."""
    size = max(strategy.micro_batch_size for strategy in strategies)
    if size == 1:
        return False
    history["strategy_micro_batch"] = size // 2
    return True
