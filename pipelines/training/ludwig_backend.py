"""A Ludwig backend for the processes of a torch.distributed process group."""

from __future__ import annotations

import os
from typing import Any

from ludwig.backend.base import LocalBackend
from ludwig.distributed import init_dist_strategy
from ludwig.distributed.accelerate import AccelerateStrategy

from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.hardware import current_hardware
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.optimizers import create_optimizer


class ProcessGroupStrategy(AccelerateStrategy):
    """Ludwig's Accelerate strategy without DistributedDataParallel.

    DDP reduces gradients in every backward pass. A step has several, for micro-batches and strategies against
    forgetting; the trainer reduces the gradients once per step.
    """

    def prepare(self, model: Any, trainer_config: Any, base_learning_rate: float) -> tuple[Any, Any]:
        return model, create_optimizer(model, trainer_config.optimizer, base_learning_rate)

    def sync_model(self, model: Any) -> None:
        ProcessGroup.current().broadcast_parameters(trainable_parameters(model))


class ProcessGroupBackend(LocalBackend):
    """Ludwig's local backend in each process of a distributed training."""

    def __init__(self) -> None:
        super().__init__()
        if current_hardware().device.type == "cpu":
            # Otherwise Accelerate does not detect the process group.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        self.strategy = ProcessGroupStrategy()

    def initialize(self) -> None:  # a static method in Ludwig
        init_dist_strategy("local")

    def is_coordinator(self) -> bool:
        return bool(self.strategy.is_coordinator())

    @property
    def num_training_workers(self) -> int:
        return int(self.strategy.size())

    def create_trainer(self, config: Any, model: Any, **kwargs: Any) -> Any:
        return super().create_trainer(config, model, distributed=self.strategy, **kwargs)
