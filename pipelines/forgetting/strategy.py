"""What keeps a model from forgetting hooks into the training step here. By default every hook does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences


class Strategy:
    """One defence against forgetting, for the length of one training.

    The order within a step: `sample_rows`, then for each micro-batch of the tasks' rows `task_loss`, then `extra_losses`, then
    `add_gradients`, then Ludwig's clipping and optimiser step, then `after_step`. Where several workers train together,
    `task_loss` and `extra_losses` see this worker's rows and are added up over them; all else is the same on each.
    """

    name: str
    process_group = ProcessGroup()
    """Those that train together; the trainer sets it before `setup`."""
    penalty_grad_norm: float = 0.0
    """Norm of the gradient that stands for what `after_step` does, where that is no gradient itself."""

    needs_logits: bool = False
    """Whether it has a `task_loss`. Where none has, the logits of the tasks' rows are never held together."""

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step, and before a checkpoint is put back: weights stand where the job starts."""

    def sample_rows(self, inputs: TokenSequences) -> int:
        """Chooses the rows that this step gets beside `inputs`; how many supervised tokens they add to its mean."""
        return 0

    def task_loss(
        self, rows: TokenSequences, logits: torch.Tensor, supervised: int, weight: float = 1.0
    ) -> torch.Tensor:
        """A term of the loss on a micro-batch of the tasks' rows: scalar, to be added to their cross entropy, which
        is a sum over `logits` [rows.supervised_tokens, vocabulary] divided by the step's `supervised`, times `weight`
        (1, and 0 for a dummy batch)."""
        raise NotImplementedError

    def reset_step(self) -> None:
        """Memory ran out; the step's `task_loss`s are asked for again, in smaller parts."""

    def extra_losses(self, supervised: int) -> Iterator[torch.Tensor]:
        """Further scalars, each with a graph of its own, to be differentiated one after the other."""
        return iter(())

    def add_gradients(self) -> None:
        """Adds to the gradients of the trained weights what no row is needed for."""

    def after_step(self, task_gradients: Sequence[torch.Tensor]) -> None:
        """Behind the optimiser's step. `task_gradients`: of the tasks' rows alone, unclipped, one a trained weight."""

    def on_train_end(self, model_id: str) -> None:
        """When the weights are saved; `model_id` is the fingerprint of their folder."""

    def metrics(self) -> dict[str, float]:
        """What this step's terms were, in nats per token, for the run's history."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: tensors, and a key `position` that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
