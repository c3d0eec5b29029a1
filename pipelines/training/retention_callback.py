"""The curve of forgetting while it happens, and an end to training where a guard's budget is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import PreparedRetentionEval, mean_scores
from pipelines.modeling.adapters import trained_weights
from pipelines.modeling.packing import TokenSequences
from pipelines.modeling.reference_model import ReferenceModel


class Watch:
    """Measures the guards every so many steps into the trainer's `history["guards"]` [{step, scores: {guard: mean}}].

    A guard whose loss (points for choices, nats per token for the others) exceeds its budget ends the training, with the
    weights of the last measurement at which all were within theirs.
    """

    name = "watch"

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
        self.within: list[torch.Tensor] = []

    def begin(self, model: torch.nn.Module) -> None:
        self.start = ReferenceModel(model) if any(guard.kind == "answers" for guard in self.guards) else None
        self._keep(model)

    def __call__(self, trainer: Any, step: int) -> None:
        if step % self.every:
            return
        model = trainer.model.model
        scores = trainer.process_group.broadcast_from_rank0(
            lambda: mean_scores(LoadedModel(model, self.prompts), self.guards, self._base_logits)
        )
        model.train()
        trainer.history.setdefault("guards", []).append({"step": step, "scores": scores})
        measured = [guard for guard in self.guards if guard.name in scores and guard.name in self.base]
        lost = {guard.name: self._lost(guard, scores[guard.name]) for guard in measured}
        spent = [name for name, budget in self.budget.items() if name in lost and lost[name] > budget]
        if not spent:
            self._keep(model)
            return
        with torch.no_grad():
            for weight, kept in zip(trained_weights(model), self.within, strict=True):
                weight.copy_(kept)
        trainer.history["budget_spent"] = {"guards": spent, "step": step}
        # Ludwig's loop ends here as it does behind the last step, with a last look at the validation rows.
        trainer.total_steps = step

    def state_dict(self) -> dict[str, Any]:
        return {f"within/{number}": weight for number, weight in enumerate(self.within)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.within = [state[f"within/{number}"].to(weight.device) for number, weight in enumerate(self.within)]

    def _lost(self, guard: PreparedRetentionEval, score: float) -> float:
        change = score - self.base[guard.name]
        return -change if guard.higher_is_better else change

    def _base_logits(self, rows: TokenSequences) -> torch.Tensor:
        assert self.start is not None
        return self.start.logits(rows)

    def _keep(self, model: torch.nn.Module) -> None:
        if self.budget:
            self.within = [weight.detach().clone() for weight in trained_weights(model)]
