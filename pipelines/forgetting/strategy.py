"""The interface between a strategy against forgetting and the training step. By default every hook does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting import penalty
    from pipelines.modeling import process_group as process_groups
    from pipelines.modeling.token_sequences import TokenSequences
else:
    process_groups = lazy_import("pipelines.modeling.process_group")  # torch


class Strategy:
    """A method against forgetting, for the length of one training.

    The order within a step: `begin_step`, then `loss_on_task_rows` for each micro-batch of the tasks' rows, then
    `losses_on_own_rows`, then `add_gradients`, then Ludwig's gradient clipping and the optimizer's step, then
    `after_step`. If several processes train together, `loss_on_task_rows` and `losses_on_own_rows` see the rows of this
    process and their gradients are summed over all processes; every other hook computes the same in each process.

    `loss_denominator` is the number of tokens over which the mean loss of a step is taken: the supervised tokens of
    the tasks' rows, and those that the strategies add in `begin_step` (the rows of replay).
    """

    name: str
    acts_during_training: ClassVar[bool] = True
    """False for a strategy that only rewrites the weights after training; the trainer does not see it."""
    has_loss_on_task_rows: bool = False
    """Whether `loss_on_task_rows` is called. If no strategy has one, the logits of the tasks' rows are not kept."""
    has_own_rows: ClassVar[bool] = False
    """Whether `losses_on_own_rows` yields losses, whose gradients are summed over the processes."""
    micro_batch_size: int = 8
    """The rows of `losses_on_own_rows` in one forward pass. The trainer lowers it if memory runs out."""
    proximal_grad_norm: float = 0.0
    """The norm of the gradient that is equivalent to what `after_step` does to the weights; 0 if it does nothing."""

    @cached_property
    def process_group(self) -> process_groups.ProcessGroup:
        """The processes that train together. The trainer sets it before `setup`."""
        return process_groups.ProcessGroup()

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Runs before the first step and before a checkpoint is loaded: `model` has the weights at the job's start.

        All processes run it at the same time, so that they can share a measurement.
        """

    def begin_step(self, inputs: TokenSequences) -> int:
        """Starts the step that trains on the tasks' rows `inputs`, and samples the strategy's own rows for it.

        Returns the number of supervised tokens that these rows add to `loss_denominator`.
        """
        return 0

    def loss_on_task_rows(
        self, rows: TokenSequences, logits: torch.Tensor, loss_denominator: int, weight: float = 1.0
    ) -> torch.Tensor:
        """Returns a loss on a micro-batch of the tasks' rows: a scalar, which is added to their cross entropy.

        The cross entropy is a sum over `logits` [rows.num_supervised_tokens, vocabulary] divided by
        `loss_denominator`, times `weight` (1, and 0 for a dummy batch). Called only if `has_loss_on_task_rows`.
        """
        raise NotImplementedError

    def reset_step(self) -> None:
        """Discards what `loss_on_task_rows` has accumulated: the step restarts after it ran out of memory."""

    def losses_on_own_rows(self, loss_denominator: int) -> Iterator[torch.Tensor]:
        """Yields the scalar losses on the rows that `begin_step` has sampled.

        Each has its own graph and is differentiated before the next is requested. If memory runs out, the trainer
        discards their gradients, lowers `micro_batch_size` and requests them from the first one again.
        """
        return iter(())

    def add_gradients(self) -> None:
        """Adds gradients that depend on the weights and not on rows."""

    def after_step(self, task_row_gradients: Sequence[torch.Tensor]) -> None:
        """Runs after the optimizer's step.

        `task_row_gradients`, in the order of the trained weights, are the unclipped gradients of the losses on the
        tasks' rows: the sum of their cross entropy, divided by `loss_denominator`, and every `loss_on_task_rows`. They
        contain neither `losses_on_own_rows` nor `add_gradients`.
        """

    def transform_weights(self, model_folder: Path) -> dict[str, Any]:
        """Runs once after training, on the folder of the saved weights, which it may rewrite; in the main process only.

        Returns entries for training.json (`pipelines.storage.records.TrainingHistory`).
        """
        return {}

    def on_train_end(self, model_fingerprint: str) -> None:
        """Runs when the weights are final; `model_fingerprint` is the fingerprint of their folder."""

    def metrics(self) -> dict[str, float]:
        """Returns the losses of the last step by name, for the key `forgetting` of the training history.

        - `replay`: cross entropy on the sampled general rows, in nats per supervised token of these rows
        - `distill`: T²·KL on the sampled general rows without the weight α, in nats per supervised token of these rows
        - `distill on tasks`: α·T²·KL on the tasks' rows, summed and divided by `loss_denominator`, as in the loss
        - the name of a penalty: its value, including its weight, as it counts in the loss
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training needs: tensors, and values that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` has returned. Runs after the weights of the checkpoint are loaded."""


class PenaltyStrategy(Strategy):
    """A strategy that consists of quadratic penalties on the weights; `setup` of a subclass fills `penalties`."""

    penalties: penalty.PenaltySet

    def add_gradients(self) -> None:
        self.penalties.add_gradients()

    def after_step(self, task_row_gradients: Sequence[torch.Tensor]) -> None:
        self.penalties.after_step()
        self.proximal_grad_norm = self.penalties.grad_norm

    def metrics(self) -> dict[str, float]:
        return {self.name: self.penalties.value} if len(self.penalties) else {}
