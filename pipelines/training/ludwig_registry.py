"""Our parts inside Ludwig: `register()` puts them in place, before the first `LudwigModel` is made."""

from __future__ import annotations


def register() -> None:
    """Registers our trainer for `trainer.type: finetune`, our model class for `model_type: llm`, and our schedule."""
    import ludwig.trainers.trainer
    from ludwig.models.registry import model_type_registry
    from ludwig.trainers.registry import register_llm_trainer

    from pipelines.training import optimizers as optimizer
    from pipelines.training.lr_scheduler import LRScheduler
    from pipelines.training.ludwig_model import FineTunedLLM
    from pipelines.training.trainer import FineTuneTrainer

    register_llm_trainer("finetune")(FineTuneTrainer)
    model_type_registry["llm"] = FineTunedLLM
    # Ludwig's registry of decays holds neither the warm-up nor one_cycle nor the plateau; its trainer finds the class here.
    ludwig.trainers.trainer.LRScheduler = LRScheduler
    optimizer.register()
