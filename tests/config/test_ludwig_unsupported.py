"""The tables of unsupported keys agree with the schema of Ludwig."""

from __future__ import annotations

import pytest

from pipelines.config import ludwig_unsupported
from pipelines.config.schema import ludwig_fields
from tests.bad_configs import GOOD
from tests.config.problems import Write, problems


def _keys(fields: dict[str, dict], path: str = "") -> set[str]:  # type: ignore[type-arg]
    keys = set()
    for name, node in fields.items():
        keys.add(path + name)
        for inner in [node.get("fields", {}), *node.get("variants", {}).values()]:
            keys |= _keys(inner, f"{path}{name}.")
    return keys


@pytest.mark.parametrize(
    "table", ["IGNORED_KEYS", "UNSUPPORTED_KEYS", "SCHEMA_OVERRIDES", "REQUIRED_VALUE", "REQUIRED_KEY"]
)
def test_every_entry_matches_keys_of_ludwig(table: str) -> None:
    keys = _keys(ludwig_fields())
    unknown = [
        pattern
        for pattern in getattr(ludwig_unsupported, table)
        if not any(ludwig_unsupported.find_rule({pattern: True}, key) for key in keys)
    ]
    assert unknown == []


def test_every_unsupported_value_belongs_to_a_key_of_ludwig() -> None:
    keys = _keys(ludwig_fields())
    assert {name for name, _ in ludwig_unsupported.UNSUPPORTED_VALUES} <= keys


def test_every_trainer_key_is_supported_or_ignored() -> None:
    """A new version of Ludwig may add keys, which must be classified."""
    names = set(ludwig_fields()["trainer"]["fields"])
    ignored = {
        name for name in names if ludwig_unsupported.find_rule(ludwig_unsupported.IGNORED_KEYS, f"trainer.{name}")
    }
    assert names - ignored == {
        "type",
        "epochs",
        "train_steps",
        "batch_size",
        "effective_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "learning_rate_scheduler",
        "optimizer",
        "gradient_clipping",
        "early_stop",
        "steps_per_checkpoint",
        "checkpoints_per_epoch",
        "should_shuffle",
        "enable_gradient_checkpointing",
        "layers_to_freeze_regex",
    }


@pytest.mark.parametrize("pattern", ludwig_unsupported.IGNORED_KEYS)
def test_an_ignored_key_is_reported_with_the_reason(write: Write, pattern: str) -> None:
    key = next(key for key in sorted(_keys(ludwig_fields())) if ludwig_unsupported.find_rule({pattern: True}, key))
    kinds = {"lr": "adafactor", "block_wise": "lion", "percentile_clipping": "lion"}
    name = key.removeprefix("trainer.optimizer.")
    kind = [f"trainer.optimizer.type={kinds[name]}"] if name in kinds else []
    reported = problems(write(GOOD), *kind, f"{key}=1")
    assert [problem.message for problem in reported] == [
        f"{key} would have no effect: {ludwig_unsupported.IGNORED_KEYS[pattern]}"
    ]
