"""Training callbacks: trainer setup, progress, and the history of the training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from ludwig.callbacks import Callback

from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.hardware import current_hardware
from pipelines.modeling.memory import return_free_heap
from pipelines.training.checkpoint import check_disk
from pipelines.training.fsdp import shard_frozen_weights
from pipelines.training.micro_batches import MicroBatches
from pipelines.training.offloading import OffloadedOptimizer, check_training_memory

if TYPE_CHECKING:
    from pipelines.training.train import ProgressCallback
    from pipelines.training.trainer import FineTuneTrainer


class StepCallback(Protocol):
    """Acts between the steps of a training. Its state is part of each checkpoint (`pipelines.training.checkpoint`)."""

    name: str

    def on_train_start(self, model: torch.nn.Module) -> None:
        """Called before the first step, and before a checkpoint is restored."""

    def on_step_end(self, trainer: FineTuneTrainer, step: int) -> None:
        """Called after each step; `step` steps are done."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class LudwigCallback(Callback):
    """Sets up the trainer before the first step and reports progress after each step.

    `history` is None until the training has ended. Then it is the trainer's history with the number of steps, the step
    of the best validation loss, and whether the training stopped early.
    """

    def __init__(
        self,
        progress: ProgressCallback,
        strategies: Sequence[Strategy] = (),
        step_callback: StepCallback | None = None,
        *,
        auto_batch_size: bool = False,
        max_nonfinite_steps: int = 0,
        fsdp: bool = False,
        offload_optimizer: bool = False,
    ) -> None:
        """
        Args:
            auto_batch_size: Measure how many tokens a micro-batch may have, instead of taking Ludwig's `batch_size`.
            max_nonfinite_steps: Steps with a non-finite loss or gradient that are skipped before training fails.
            fsdp: Shard the frozen weights over the processes.
            offload_optimizer: Keep the optimizer in main memory, and the weights in half precision on a GPU.
        """
        self.progress = progress
        self.strategies = strategies
        self.step_callback = step_callback
        self.auto_batch_size = auto_batch_size
        self.max_nonfinite_steps = max_nonfinite_steps
        self.fsdp = fsdp
        self.offload_optimizer = offload_optimizer
        self.history: dict[str, Any] | None = None
        self._last_time = time.monotonic()
        self._returns_free_heap = False

    def on_trainer_train_setup(self, trainer: FineTuneTrainer, save_path: str, is_coordinator: bool) -> None:
        model = trainer.model.model
        check_training_memory(model, trainer.optimizer, offload=self.offload_optimizer)
        check_disk(model, save_path)
        is_on_cpu = current_hardware().device.type == "cpu"
        self._returns_free_heap = is_on_cpu and getattr(model, "is_quantized", False)
        if self.offload_optimizer:
            trainer.optimizer = OffloadedOptimizer(trainer.optimizer, current_hardware().dtype)
        trainer.strategies[:] = self.strategies
        trainer.step_callback = self.step_callback
        trainer.max_nonfinite_steps = self.max_nonfinite_steps
        if self.auto_batch_size:
            trainer.micro_batches = MicroBatches(None, trainer.history)
        if self.fsdp:
            trainer.process_group = shard_frozen_weights(model, trainer.process_group)
        for strategy in self.strategies:
            strategy.process_group = trainer.process_group
            strategy.setup(model, trainer.optimizer)
        if self.step_callback is not None:
            self.step_callback.on_train_start(model)
        self._last_time = time.monotonic()

    def on_epoch_start(self, trainer: FineTuneTrainer, progress_tracker: Any, save_path: str) -> None:
        self.progress(progress_tracker.steps, trainer.total_steps, None)

    def on_batch_start(self, trainer: FineTuneTrainer, progress_tracker: Any, save_path: str) -> None:
        trainer.stop_if_requested()

    def on_batch_end(
        self, trainer: FineTuneTrainer, progress_tracker: Any, save_path: str, sync_step: bool = True
    ) -> None:
        if self._returns_free_heap:
            return_free_heap()
        # A sum over the steps in the history, so that a resumed training includes the time before the interruption.
        now = time.monotonic()
        trainer.history["seconds"] = trainer.history.get("seconds", 0.0) + now - self._last_time
        self._last_time = now
        if self.step_callback is not None:
            self.step_callback.on_step_end(trainer, progress_tracker.steps)
        losses = trainer.history["train_loss"]
        self.progress(progress_tracker.steps, trainer.total_steps, losses[-1]["loss"] if losses else None)

    def on_trainer_train_teardown(
        self, trainer: FineTuneTrainer, progress_tracker: Any, save_path: str, is_coordinator: bool
    ) -> None:
        steps, history = progress_tracker.steps, trainer.history
        self.history = {
            "steps": steps,
            **history,
            "best_step": progress_tracker.best_eval_metric_steps if history["validation_loss"] else steps,
            "stopped_early": steps < trainer.total_steps,
        }
