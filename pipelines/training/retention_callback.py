"""The curve of forgetting while it happens, and an end to training where a guard's budget is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import PreparedRetentionEval, mean_scores
from pipelines.modeling.adapters import trained_weights
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_sequences import TokenSequences


class RetentionCallback:
    """Measures the guards every so many steps into the trainer's `history["retention"]` [{step, scores: {guard: mean}}].

    A guard whose loss (points for choices, nats per token for the others) exceeds its budget ends the training, with the
    weights of the last measurement at which all were within theirs.
    """

    name = "retention"

    def __init__(
        self,
        guards: Sequence[PreparedRetentionEval],
        prompts: PromptFormat,
        every: int,
        budget: Mapping[str, float],
        base: Mapping[str, float],
    ) -> None:
        """`base`: each guard's mean before training."""
        self.guards, self.prompts, self.every, self.budget, self.base = guards, prompts, every, budget, base
        self.last_good_weights: list[torch.Tensor] = []

    def on_train_start(self, model: torch.nn.Module) -> None:
        self.reference = ReferenceModel(model) if any(guard.kind == "kl" for guard in self.guards) else None
        self._keep_weights(model)

    def on_step_end(self, trainer: Any, step: int) -> None:
        if step % self.every:
            return
        model = trainer.model.model
        scores = trainer.process_group.broadcast_from_rank0(
            lambda: mean_scores(LoadedModel(model, self.prompts), self.guards, self._base_logits)
        )
        model.train()
        trainer.history.setdefault("retention", []).append({"step": step, "scores": scores})
        measured = [guard for guard in self.guards if guard.name in scores and guard.name in self.base]
        lost = {guard.name: self._lost(guard, scores[guard.name]) for guard in measured}
        spent = [name for name, budget in self.budget.items() if name in lost and lost[name] > budget]
        if not spent:
            self._keep_weights(model)
            return
        with torch.no_grad():
            for weight, kept in zip(trained_weights(model), self.last_good_weights, strict=True):
                weight.copy_(kept)
        trainer.history["stopped_by_retention"] = {"evals": spent, "step": step}
        # Ludwig's loop ends here as it does behind the last step, with a last look at the validation rows.
        trainer.total_steps = step

    def state_dict(self) -> dict[str, Any]:
        return {f"last_good_weights/{number}": weight for number, weight in enumerate(self.last_good_weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_good_weights = [
            state[f"last_good_weights/{number}"].to(weight.device)
            for number, weight in enumerate(self.last_good_weights)
        ]

    def _lost(self, guard: PreparedRetentionEval, score: float) -> float:
        change = score - self.base[guard.name]
        return -change if guard.higher_is_better else change

    def _base_logits(self, rows: TokenSequences) -> torch.Tensor:
        assert self.reference is not None
        return self.reference.logits(rows)

    def _keep_weights(self, model: torch.nn.Module) -> None:
        if self.budget:
            self.last_good_weights = [weight.detach().clone() for weight in trained_weights(model)]
