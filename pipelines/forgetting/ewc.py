"""Elastic weight consolidation: springs as stiff as the Fisher information of the start on what must be kept."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.config.forgetting import Ewc as Settings
from pipelines.forgetting.fisher import lora_fisher, weight_fisher
from pipelines.forgetting.importance import Importance, load_or_compute
from pipelines.forgetting.penalty import LoraQuadraticPenalty, ProximalQuadraticPenalty, lora_pairs, quadratic_penalty
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.token_sequences import TokenSequences


class Ewc(Strategy):
    """λ/2 · Σ F (θ − θ₀)², one quadratic penalty per text: general text, and the rows of each earlier job."""

    name = "ewc"

    def __init__(
        self, settings: Settings, texts: list[tuple[TokenSequences, Path, float]], model_id: str, seed: int
    ) -> None:
        """`texts`: rows, the file that keeps their Fisher information, and what the penalty's weight is multiplied by.
        `model_id`: the fingerprint of the weights that the job starts from."""
        self.settings, self.texts, self.model_id, self.seed = settings, texts, model_id, seed

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        adapter = any(True for _ in lora_pairs(model))
        self.penalties: list[LoraQuadraticPenalty | ProximalQuadraticPenalty] = []
        if not self.settings.weight:
            return
        for rows, path, share in self.texts:
            importance = load_or_compute(path, self.model_id, lambda rows=rows: self._measure(model, rows, adapter))  # type: ignore[misc]
            self.penalties.append(quadratic_penalty(self.name, self.settings.weight * share, adapter, importance))
        for penalty in self.penalties:
            penalty.setup(model, optimizer)

    def _measure(self, model: torch.nn.Module, rows: TokenSequences, adapter: bool) -> Importance:
        if adapter:
            return lora_fisher(model, rows, self.seed, kronecker=self.settings.fisher == "kronecker")
        return weight_fisher(model, rows, self.seed)

    def add_gradients(self) -> None:
        for penalty in self.penalties:
            penalty.add_gradients()

    def after_step(self, task_gradients: object) -> None:
        for penalty in self.penalties:
            penalty.after_step(())
        self.penalty_grad_norm = sum(penalty.penalty_grad_norm for penalty in self.penalties)

    def metrics(self) -> dict[str, float]:
        return {self.name: sum(penalty.cost for penalty in self.penalties)} if self.penalties else {}
