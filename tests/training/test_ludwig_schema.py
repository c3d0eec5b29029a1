"""The snapshot of Ludwig's schema agrees with the installed Ludwig."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.config.ludwig_unsupported import UNSUPPORTED_VALUES
from pipelines.config.schema import LUDWIG_SCHEMA, ludwig_fields
from pipelines.training.ludwig_schema import PEFT_DEFAULTS, _type_node, ludwig_schema, peft_defaults, render

pytestmark = pytest.mark.ludwig


def test_the_snapshot_is_that_of_the_installed_ludwig() -> None:
    assert LUDWIG_SCHEMA.read_text(encoding="utf-8") == render(ludwig_schema()) + "\n", (
        "run python -m pipelines.training.ludwig_schema"
    )
    assert PEFT_DEFAULTS.read_text(encoding="utf-8") == render(peft_defaults()) + "\n", (
        "run python -m pipelines.training.ludwig_schema"
    )


def test_ludwig_still_loses_the_ranges_that_a_config_class_inherits() -> None:
    """`_declared_field` works around it: Ludwig accepts `trainer.epochs: 0` for finetune, against its schema."""
    from ludwig.schema.trainer import ECDTrainerConfig, FineTuneTrainerConfig

    assert ECDTrainerConfig.model_fields["epochs"].metadata
    assert not FineTuneTrainerConfig.model_fields["epochs"].metadata


def optimizer(name: str) -> str:
    return f"trainer.optimizer={{type: {name}{', momentum: 0.9' if name == 'sgd_8bit' else ''}}}"


def test_stock_ludwig_accepts_what_alfine_accepts(tmp_path: Path) -> None:
    from ludwig.schema.model_types.base import ModelConfig

    from tests.config.test_job import ACCEPTED, GOOD

    sizes = {
        "vocab_size": 64,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    (tmp_path / "job.yaml").write_text(GOOD)
    schema = ludwig_fields()
    kinds = [name for name in schema["adapter"]["variants"] if ("adapter.type", name) not in UNSUPPORTED_VALUES]
    adapters = [f"adapter={{type: {name}}}" for name in kinds]
    refused = {value for key, value in UNSUPPORTED_VALUES if key == "trainer.optimizer.type"}
    optimizers = schema["trainer"]["fields"]["optimizer"]["variants"].keys() - refused
    optimizing = [optimizer(name) for name in sorted(optimizers)]
    # Ludwig drops unknown keys from the dictionaries that it gets, so they are copied.
    features = {"input_features": [{"name": "a", "type": "text"}], "output_features": [{"name": "b", "type": "text"}]}
    for override in [*ACCEPTED, *adapters, *optimizing]:
        without_adapter = ["adapter=null"] if override in (optimizer("lamb"), optimizer("lars")) else []
        job = load_job(tmp_path / "job.yaml", [override, *without_adapter, f"base_model={tmp_path}"])
        ModelConfig.from_dict(copy.deepcopy({**job.ludwig, **features}))


def test_types_of_annotations() -> None:
    assert _type_node(int | list[int] | None) == {
        "types": ["integer", "list", "null"],
        "items": {"types": ["integer"]},
    }
    assert _type_node(tuple[int, float]) == {"types": ["list"]}
    assert _type_node(dict[str, int] | None) == {"types": ["mapping", "null"]}
    assert _type_node(complex | None) == {}


def test_render_is_json_with_a_line_for_each_key() -> None:
    node = {
        "types": ["mapping"],
        "fields": {"a": {"min": 1}, "b": {"types": ["list"], "items": {"min": 0}}, "c": {}},
    }
    text = render(node)
    assert json.loads(text) == node
    assert len(text.splitlines()) == 8
