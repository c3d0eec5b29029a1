"""What the outside learns of a training that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ludwig.callbacks import Callback

from pipelines.forgetting.strategy import Strategy
from pipelines.training.checkpoint import check_disk
from pipelines.training.micro_batches import MicroBatches


class TrainerCallback(Protocol):
    """Looks on from outside the step; `state_dict` and `load_state_dict` as a strategy's."""

    name: str

    def on_train_start(self, model: Any) -> None: ...

    def on_step_end(self, trainer: Any, step: int) -> None:
        """Behind a step; `step` of them are done."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class LudwigCallback(Callback):
    """Hands the strategies to the trainer, reports every step, and keeps the trainer's history: losses, rows, tokens, the
    chosen step."""

    def __init__(
        self,
        report: Callable[[int, int, float | None], None],
        strategies: Sequence[Strategy] = (),
        step_callback: TrainerCallback | None = None,
        fit_memory: bool = False,
        max_nonfinite_steps: int = 0,
        shard_base: bool = False,
    ) -> None:
        """`fit_memory`: rows go through the model as many at once as memory allows, instead of `batch_size` of them.
        `max_nonfinite_steps`: steps without a finite loss that are passed over. `shard_base`: each worker holds a part of the frozen
        weights."""
        self.report, self.strategies, self.step_callback = report, strategies, step_callback
        self.fit_memory, self.max_nonfinite_steps, self.shard_base = fit_memory, max_nonfinite_steps, shard_base
        self.history: dict[str, Any] | None = None
        self._seen = time.monotonic()

    def on_trainer_train_setup(self, trainer: Any, save_path: str, is_coordinator: bool) -> None:
        check_disk(trainer.model.model, save_path)
        trainer.strategies[:] = self.strategies
        trainer.step_callback, trainer.max_nonfinite_steps = self.step_callback, self.max_nonfinite_steps
        if self.fit_memory:
            trainer.micro_batches = MicroBatches(None, trainer.history)
        if self.shard_base:
            # torch's FSDP is a second to import, and few want it.
            from pipelines.training.fsdp import shard_base

            trainer.process_group = shard_base(trainer.model.model, trainer.process_group)
        with trainer.process_group.main_process_first():
            for strategy in self.strategies:
                strategy.process_group = trainer.process_group
                strategy.setup(trainer.model.model, trainer.optimizer)
        if self.step_callback is not None:
            self.step_callback.on_train_start(trainer.model.model)

        self._seen = time.monotonic()

    def on_epoch_start(self, trainer: Any, progress_tracker: Any, save_path: str) -> None:
        self.report(progress_tracker.steps, trainer.total_steps, None)

    def on_batch_start(self, trainer: Any, progress_tracker: Any, save_path: str) -> None:
        trainer.stop_if_requested()

    def on_batch_end(self, trainer: Any, progress_tracker: Any, save_path: str, sync_step: bool = True) -> None:
        # Added up from step to step, so that a training that was cut off counts what it had done before.
        now = time.monotonic()
        trainer.history["seconds"] = trainer.history.get("seconds", 0.0) + now - self._seen
        self._seen = now
        losses = trainer.history["train_loss"]
        if self.step_callback is not None:
            self.step_callback.on_step_end(trainer, progress_tracker.steps)
        self.report(progress_tracker.steps, trainer.total_steps, losses[-1]["loss"] if losses else None)

    def on_trainer_train_teardown(
        self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool
    ) -> None:
        best = progress_tracker.best_eval_metric_steps
        self.history = {
            "steps": progress_tracker.steps,
            **trainer.history,
            "best_step": best if trainer.history["validation_loss"] else progress_tracker.steps,
            "stopped_early": progress_tracker.steps < trainer.total_steps,
        }
