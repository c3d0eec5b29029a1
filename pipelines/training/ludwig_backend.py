"""Ludwig's own idea of several processes, on ours."""

from __future__ import annotations

import os
from typing import Any

import torch
from ludwig.backend.base import LocalBackend
from ludwig.distributed import init_dist_strategy
from ludwig.distributed.accelerate import AccelerateStrategy
from ludwig.modules.optimization_modules import create_optimizer

from pipelines.modeling.process_group import ProcessGroup


class ProcessGroupStrategy(AccelerateStrategy):
    """Ludwig's Accelerate strategy, but for DDP around the model: it would send gradients behind every backward pass, and a
    step has several, of micro-batches and of what keeps the model from forgetting. Ours are sent once a step, by the
    trainer."""

    def prepare(self, model: Any, trainer_config: Any, base_learning_rate: float) -> tuple[Any, Any]:
        return model, create_optimizer(model, trainer_config.optimizer, base_learning_rate)

    def sync_model(self, model: Any) -> None:
        ProcessGroup.current().broadcast_parameters([weight for weight in model.parameters() if weight.requires_grad])


class ProcessGroupBackend(LocalBackend):
    """Ludwig's local backend in each of several processes that share a training."""

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            # Without this Accelerate takes each process for the only one.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        self.strategy = ProcessGroupStrategy()

    def initialize(self) -> None:  # a static method there
        init_dist_strategy("local")

    def is_coordinator(self) -> bool:
        return bool(self.strategy.is_coordinator())

    @property
    def num_training_workers(self) -> int:
        return int(self.strategy.size())

    def create_trainer(self, config: Any, model: Any, **kwargs: Any) -> Any:
        return super().create_trainer(config, model, distributed=self.strategy, **kwargs)
