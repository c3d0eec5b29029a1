"""`register` replaces parts of Ludwig, once."""

import pytest


@pytest.mark.ludwig
def test_register_replaces_ludwigs_parts_and_may_be_repeated():
    import ludwig.distributed.base
    import ludwig.models.llm
    import ludwig.trainers.trainer
    from ludwig.models.registry import model_type_registry
    from ludwig.trainers.registry import get_llm_trainers_registry

    from pipelines.training.lr_scheduler import LRScheduler
    from pipelines.training.ludwig_model import FineTunedLLM, load_base_model
    from pipelines.training.ludwig_registry import register
    from pipelines.training.optimizers import create_optimizer
    from pipelines.training.trainer import FineTuneTrainer

    for _ in range(2):
        register()
        assert get_llm_trainers_registry()["finetune"] is FineTuneTrainer
        assert model_type_registry["llm"] is FineTunedLLM
        assert ludwig.models.llm.load_pretrained_from_config is load_base_model
        assert ludwig.trainers.trainer.LRScheduler is LRScheduler
        assert ludwig.distributed.base.create_optimizer is create_optimizer
        # Ludwig's would replace the embedding by another one for an 8-bit optimizer.
        embedding = object()
        assert ludwig.trainers.trainer.update_embedding_layer(embedding, None) is embedding
