"""Ludwig's parts are replaced once, and only one package imports Ludwig."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pipelines"
SCHEMA_GENERATOR = PACKAGE / "config" / "ludwig_schema.py"


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("lazy_import", "import_module"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def test_ludwig_is_imported_by_the_training_package_only():
    paths = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "training" not in path.parents]
    assert len(paths) > 50
    importing = [
        path.relative_to(PACKAGE)
        for path in paths
        if any(name.split(".")[0] == "ludwig" for name in imported_modules(path)) and path != SCHEMA_GENERATOR
    ]
    assert importing == []


def test_ludwigs_import_is_found_in_the_training_package():
    assert "ludwig.models.llm" in imported_modules(PACKAGE / "training" / "ludwig_model.py")


@pytest.mark.ludwig
def test_register_replaces_ludwigs_parts_and_may_be_repeated():
    import ludwig.models.llm
    import ludwig.modules.optimization_modules
    import ludwig.trainers.trainer
    from ludwig.models.registry import model_type_registry
    from ludwig.trainers.registry import get_llm_trainers_registry

    from pipelines.training.lr_scheduler import LRScheduler
    from pipelines.training.ludwig_model import FineTunedLLM, load_base_model
    from pipelines.training.ludwig_registry import register
    from pipelines.training.optimizers import ludwig_class_and_kwargs, optimizer_class_and_kwargs
    from pipelines.training.trainer import FineTuneTrainer

    for _ in range(2):
        register()
        assert get_llm_trainers_registry()["finetune"] is FineTuneTrainer
        assert model_type_registry["llm"] is FineTunedLLM
        assert ludwig.models.llm.load_pretrained_from_config is load_base_model
        assert ludwig.trainers.trainer.LRScheduler is LRScheduler
        assert ludwig.modules.optimization_modules.get_optimizer_class_and_kwargs is optimizer_class_and_kwargs
    assert ludwig_class_and_kwargs.__module__ == "ludwig.modules.optimization_modules"
