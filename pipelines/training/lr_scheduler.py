"""The learning-rate scheduler that replaces Ludwig's `LRScheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.config.lr_schedules import Plateau, ScheduleSettings, StepCounts, lr_factor


class LRScheduler:
    """Sets the learning rate of each parameter group of `optimizer` before each step.

    The rate is the group's initial rate times the closed form of the schedule at the step
    (`pipelines.config.lr_schedules`) times the reductions on a plateau. Ludwig creates one scheduler with 0 steps
    before it knows their number; that one does not change the optimizer.

    In Ludwig's scheduler, `one_cycle` uses the rate that this first scheduler has set as its peak, `exponential` starts
    at `decay_rate` instead of 1, `inverse_sqrt` multiplies by 1/√4000, `polynomial` counts the warm-up twice, `cosine`
    restarts at every evaluation, `wsd` ignores one of its fractions, and a second reduction on a plateau counts three
    times for one step.
    """

    def __init__(self, config: Any, optimizer: Any, steps_per_checkpoint: int, total_steps: int) -> None:
        self.settings = ScheduleSettings.from_config(config)
        self.optimizer = optimizer
        # Ludwig does not pass the steps of an epoch. No schedule depends on them.
        self.steps = StepCounts(per_epoch=steps_per_checkpoint, total=total_steps, per_evaluation=steps_per_checkpoint)
        self.plateau = Plateau(self.settings)
        self.step_count = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        # With several groups (LoRA+), the first has `trainer.learning_rate` and the others a multiple of it.
        self.peak = optimizer.param_groups[0]["initial_lr"]
        self._set_rates()

    def _set_rates(self) -> None:
        if not self.steps.total:
            return
        scale = lr_factor(self.settings, self.steps, self.peak, self.step_count) * self.plateau.factor
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale

    def step(self) -> None:
        """Called after each optimizer step."""
        self.step_count += 1
        self._set_rates()

    def eval_step(self, progress_tracker: Any, validation_field: str) -> None:
        """Called after each evaluation: `reduce_on_plateau` depends on the loss of `reduce_eval_split`."""
        if not self.settings.reduce_on_plateau:
            return
        on_training_set = self.settings.reduce_eval_split == "training"
        metrics = progress_tracker.train_metrics if on_training_set else progress_tracker.validation_metrics
        self.plateau.update(float(metrics[validation_field]["loss"][-1][-1]))
        progress_tracker.num_reductions_learning_rate = self.plateau.num_reductions
        self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        """Returns a state that JSON can represent. `load_state_dict` restores every rate bitwise from it."""
        plateau = self.plateau
        return {
            "step": self.step_count,
            "plateau": [plateau.best_loss, plateau.num_bad_evaluations, plateau.num_reductions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step_count = state["step"]
        self.plateau.best_loss, self.plateau.num_bad_evaluations, self.plateau.num_reductions = state["plateau"]
        self._set_rates()
