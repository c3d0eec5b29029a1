"""The learning rate of each optimiser step, in the place of Ludwig's `LRScheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.config.lr_schedules import Plateau, Settings, Steps, factor


class LRScheduler:
    """Sets the rate of every group of `optimizer`: its own initial rate times the closed form of the step
    (`pipelines.config.lr_schedules`) times the reductions on a plateau.

    Ludwig builds one with no steps before it knows how many there are; that one leaves the optimiser as it is. Of Ludwig's own,
    `one_cycle` takes the rate that this first one has left for its peak, `exponential` starts at `decay_rate` instead of 1,
    `inverse_sqrt` multiplies by 1/√4000, `polynomial` counts the warm-up twice, `cosine` restarts with every evaluation, `wsd`
    has no use for one of its fractions, and a second reduction on a plateau counts thrice for a step.
    """

    def __init__(self, config: Any, optimizer: Any, steps_per_checkpoint: int, total_steps: int) -> None:
        self.settings = Settings.of(config)
        self.optimizer = optimizer
        self.steps = Steps(per_epoch=steps_per_checkpoint, total=total_steps, per_evaluation=steps_per_checkpoint)
        self.plateau = Plateau(self.settings)
        self.step_number = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        # Of several groups (LoRA+) the first has `trainer.learning_rate`, the others a multiple of it.
        self.peak = optimizer.param_groups[0]["initial_lr"]
        self._set_rates()

    def _set_rates(self) -> None:
        if not self.steps.total:
            return
        share = factor(self.settings, self.steps, self.peak, self.step_number) * self.plateau.factor
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share

    def step(self) -> None:
        """After each optimiser step."""
        self.step_number += 1
        self._set_rates()

    def eval_step(self, progress_tracker: Any, validation_field: str) -> None:
        """After each evaluation: with `reduce_on_plateau`, the loss of `reduce_eval_split` decides on a reduction."""
        if not self.settings.reduce_on_plateau:
            return
        training = self.settings.reduce_eval_split == "training"
        metrics = progress_tracker.train_metrics if training else progress_tracker.validation_metrics
        self.plateau.see(float(metrics[validation_field]["loss"][-1][-1]))
        progress_tracker.num_reductions_learning_rate = self.plateau.reductions
        self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which `load_state_dict` has every rate to the bit."""
        plateau = self.plateau
        return {"step": self.step_number, "plateau": [plateau.best, plateau.without_progress, plateau.reductions]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step_number = state["step"]
        self.plateau.best, self.plateau.without_progress, self.plateau.reductions = state["plateau"]
        self._set_rates()
