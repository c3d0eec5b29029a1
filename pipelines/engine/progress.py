"""What the outside learns of a training that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ludwig.callbacks import Callback


class StepCallback(Callback):
    """Reports every step and keeps the trainer's history: losses, rows, tokens, the chosen step."""

    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self.report = report
        self.history: dict[str, Any] | None = None

    def on_epoch_start(self, trainer: Any, progress_tracker: Any, save_path: str) -> None:
        self.report(progress_tracker.steps, trainer.total_steps, None)

    def on_batch_end(self, trainer: Any, progress_tracker: Any, save_path: str, sync_step: bool = True) -> None:
        losses = trainer.history["train_loss"]
        self.report(progress_tracker.steps, trainer.total_steps, losses[-1]["loss"] if losses else None)

    def on_trainer_train_teardown(self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool) -> None:
        best = progress_tracker.best_eval_metric_steps
        self.history = {
            "steps": progress_tracker.steps,
            **trainer.history,
            "best_step": best if trainer.history["validation_loss"] else progress_tracker.steps,
            "stopped_early": progress_tracker.steps < trainer.total_steps,
        }
