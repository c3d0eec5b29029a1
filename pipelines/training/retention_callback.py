"""Retention evals during training, and early stopping when a score regresses too far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import PreparedRetentionEval, mean_scores
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_sequences import TokenSequences

if TYPE_CHECKING:
    from pipelines.training.trainer import FineTuneTrainer


class RetentionCallback:
    """Runs the retention evals every `eval_steps` steps and records the mean scores in the history.

    `history["retention"]` is [{step, scores: {eval: mean}}]. If an eval regresses by more than its `max_regression`
    (percentage points, or nats per token), the training ends with the weights of the last measurement at which no eval
    did.
    """

    name = "retention"

    def __init__(
        self,
        evals: Sequence[PreparedRetentionEval],
        prompt_format: PromptFormat,
        eval_steps: int,
        max_regression: Mapping[str, float],
        base_means: Mapping[str, float],
    ) -> None:
        """`base_means` has the mean score of each eval before training. `max_regression` may have only some of them."""
        self.evals, self.prompt_format, self.eval_steps = evals, prompt_format, eval_steps
        self.max_regression, self.base_means = max_regression, base_means
        self.last_good_weights: list[torch.Tensor] = []

    def on_train_start(self, model: torch.nn.Module) -> None:
        needs_reference = any(prepared.eval_class.needs_reference_model for prepared in self.evals)
        self.reference = ReferenceModel(model) if needs_reference else None
        self._keep_weights(model)

    def on_step_end(self, trainer: FineTuneTrainer, step: int) -> None:
        if step % self.eval_steps:
            return
        model = trainer.model.model
        with autocast(trainer.device):
            scores = trainer.process_group.broadcast_from_rank0(
                lambda: mean_scores(LoadedModel(model, self.prompt_format), self.evals, self._reference_logits)
            )
        model.train()
        trainer.history.setdefault("retention", []).append({"step": step, "scores": scores})
        regressed = self._regressed(scores)
        if not regressed:
            self._keep_weights(model)
            return
        with torch.no_grad():
            for weight, good in zip(trainable_parameters(model), self.last_good_weights, strict=True):
                weight.copy_(good)
        trainer.history["stopped_by_retention"] = {"evals": regressed, "step": step}
        trainer.stop_after(step)

    def state_dict(self) -> dict[str, Any]:
        return {f"last_good_weights/{index}": weight for index, weight in enumerate(self.last_good_weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_good_weights = [
            state[f"last_good_weights/{index}"].to(weight.device) for index, weight in enumerate(self.last_good_weights)
        ]

    def _regressed(self, scores: Mapping[str, float]) -> list[str]:
        """Returns the names of the evals that are worse than before training by more than `max_regression`."""
        higher_is_better = {retention_eval.name: retention_eval.higher_is_better for retention_eval in self.evals}
        regressions = {
            name: self.base_means[name] - scores[name] if is_higher_better else scores[name] - self.base_means[name]
            for name, is_higher_better in higher_is_better.items()
            if name in scores and name in self.base_means
        }
        return [
            name for name, limit in self.max_regression.items() if name in regressions and regressions[name] > limit
        ]

    def _reference_logits(self, sequences: TokenSequences) -> torch.Tensor:
        assert self.reference is not None
        return self.reference.logits(sequences)

    def _keep_weights(self, model: torch.nn.Module) -> None:
        if self.max_regression:
            self.last_good_weights = [weight.detach().to("cpu", copy=True) for weight in trainable_parameters(model)]
