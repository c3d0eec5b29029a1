"""Elastic weight consolidation: springs as stiff as the Fisher information of the start on what must be kept."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.config.forgetting import Ewc as Settings
from pipelines.forgetting.fisher import lora_fisher, weight_fisher
from pipelines.forgetting.importance import Importance, remembered
from pipelines.forgetting.penalty import LoraSpring, WeightSpring, lora_pairs, spring
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.packing import Rows


class Ewc(Strategy):
    """λ/2 · Σ F (θ − θ₀)², one spring a text: general text, and the rows of each earlier job."""

    name = "ewc"

    def __init__(self, settings: Settings, texts: list[tuple[Rows, Path, float]], model_id: str, seed: int) -> None:
        """`texts`: rows, the file that keeps their Fisher information, and what the spring's strength is multiplied by.
        `model_id`: the fingerprint of the weights that the job starts from."""
        self.settings, self.texts, self.model_id, self.seed = settings, texts, model_id, seed

    def begin(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        adapter = any(True for _ in lora_pairs(model))
        self.springs: list[LoraSpring | WeightSpring] = []
        if not self.settings.strength:
            return
        for rows, path, share in self.texts:
            importance = remembered(path, self.model_id, lambda rows=rows: self._measure(model, rows, adapter))  # type: ignore[misc]
            self.springs.append(spring(self.name, self.settings.strength * share, adapter, importance))
        for one in self.springs:
            one.begin(model, optimizer)

    def _measure(self, model: torch.nn.Module, rows: Rows, adapter: bool) -> Importance:
        if adapter:
            return lora_fisher(model, rows, self.seed, kronecker=self.settings.fisher == "kronecker")
        return weight_fisher(model, rows, self.seed)

    def add_gradients(self) -> None:
        for one in self.springs:
            one.add_gradients()

    def after_step(self, task_gradients: object) -> None:
        for one in self.springs:
            one.after_step(())
        self.pull = sum(one.pull for one in self.springs)

    def measured(self) -> dict[str, float]:
        return {self.name: sum(one.cost for one in self.springs)} if self.springs else {}
