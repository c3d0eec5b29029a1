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

    The order within a step: `sample_rows`, then `task_loss` for each micro-batch of the tasks' rows, then
    `extra_losses`, then `add_gradients`, then Ludwig's gradient clipping and the optimizer's step, then `after_step`.
    Where several processes train together, `task_loss` and `extra_losses` see the rows of this process and their
    gradients are summed over all processes; every other hook computes the same in each process.
    """

    name: str
    acts_during_training: ClassVar[bool] = True
    """False for a strategy that only rewrites the weights after training; the trainer does not see it."""
    needs_logits: bool = False
    """Whether the strategy has a `task_loss`. Where none has, the logits of the tasks' rows are not kept in memory."""
    penalty_grad_norm: float = 0.0
    """The norm of the gradient that is equivalent to what `after_step` does to the weights; 0 where it does nothing."""

    @cached_property
    def process_group(self) -> process_groups.ProcessGroup:
        """The processes that train together. The trainer sets it before `setup`."""
        return process_groups.ProcessGroup()

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Runs before the first step and before a checkpoint is loaded: `model` has the weights at the job's start."""

    def sample_rows(self, inputs: TokenSequences) -> int:
        """Samples the strategy's own rows for the step that trains on `inputs`.

        Returns the number of supervised tokens that they add to the denominator of the step's mean loss.
        """
        return 0

    def task_loss(
        self, rows: TokenSequences, logits: torch.Tensor, supervised: int, weight: float = 1.0
    ) -> torch.Tensor:
        """Returns a loss on a micro-batch of the tasks' rows: a scalar, which is added to their cross entropy.

        The cross entropy is a sum over `logits` [rows.num_supervised_tokens, vocabulary] divided by `supervised`, the
        number of supervised tokens of the step, times `weight` (1, and 0 for a dummy batch). Called only if
        `needs_logits`.
        """
        raise NotImplementedError

    def reset_step(self) -> None:
        """Discards what `task_loss` has accumulated: out of memory, the step is repeated in smaller micro-batches."""

    def extra_losses(self, supervised: int) -> Iterator[torch.Tensor]:
        """Yields further scalar losses. Each has its own graph and is differentiated before the next is requested."""
        return iter(())

    def add_gradients(self) -> None:
        """Adds gradients that depend on the weights and not on rows."""

    def after_step(self, task_gradients: Sequence[torch.Tensor]) -> None:
        """Runs after the optimizer's step.

        `task_gradients` are the gradients of the tasks' loss without any strategy, unclipped, in the order of the
        trained weights.
        """

    def transform_weights(self, model_folder: Path) -> dict[str, Any]:
        """Runs once after training, on the folder of the saved weights, which it may rewrite; in the main process only.

        Returns entries for training.json.
        """
        return {}

    def on_train_end(self, model_id: str) -> None:
        """Runs when the weights are final; `model_id` is the fingerprint of their folder."""

    def metrics(self) -> dict[str, float]:
        """Returns the losses of the last step, in nats per token, for the training history."""
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

    def after_step(self, task_gradients: Sequence[torch.Tensor]) -> None:
        self.penalties.after_step()
        self.penalty_grad_norm = self.penalties.grad_norm

    def metrics(self) -> dict[str, float]:
        return {self.name: self.penalties.cost} if len(self.penalties) else {}
