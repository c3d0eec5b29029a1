"""Our parts inside Ludwig: `register()` puts them in place, before the first `LudwigModel` is made."""

from __future__ import annotations


def register() -> None:
    """Registers our trainer for `trainer.type: finetune` and our model class for `model_type: llm`."""
    from ludwig.models.registry import model_type_registry
    from ludwig.trainers.registry import register_llm_trainer

    from pipelines.engine.model import FineTunedLLM
    from pipelines.engine.trainer import FineTuneTrainer

    register_llm_trainer("finetune")(FineTuneTrainer)
    model_type_registry["llm"] = FineTunedLLM
