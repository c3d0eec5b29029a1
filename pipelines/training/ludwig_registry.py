"""Registers this package's trainer, model class, learning-rate scheduler and optimizers with Ludwig."""

from __future__ import annotations

import ludwig.distributed.base as ludwig_distributed
import ludwig.models.llm as ludwig_llm
import ludwig.trainers.trainer as ludwig_trainer
from ludwig.models.registry import model_type_registry
from ludwig.trainers.registry import register_llm_trainer

from pipelines.training.lr_scheduler import LRScheduler
from pipelines.training.ludwig_model import FineTunedLLM, load_base_model
from pipelines.training.optimizers import create_optimizer
from pipelines.training.trainer import FineTuneTrainer


def register() -> None:
    """Replaces Ludwig's parts, for all models created afterwards. Calling it again has no effect.

    Ludwig has registries for the trainer and the model class. The functions and the scheduler are looked up in the
    modules that use them, so they are replaced there. Its registry of schedules covers neither warm-up nor `one_cycle`
    nor the reduction on a plateau.
    """
    register_llm_trainer("finetune")(FineTuneTrainer)
    model_type_registry["llm"] = FineTunedLLM
    ludwig_llm.load_pretrained_from_config = load_base_model
    ludwig_trainer.LRScheduler = LRScheduler
    ludwig_distributed.create_optimizer = create_optimizer
    # For 8-bit optimizers it would replace the embedding, see `create_optimizer`.
    ludwig_trainer.update_embedding_layer = lambda model, config: model
