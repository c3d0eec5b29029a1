"""The values of `forgetting.strategy`."""

import pytest

from pipelines.config.forgetting import AUTO_SETTINGS, Forgetting, parse_strategies, resolve_auto
from pipelines.config.strategy_registry import STRATEGIES


@pytest.mark.parametrize(
    ("word", "strategies"),
    [
        ("none", []),
        ("ewc", ["ewc"]),
        ("ewc + si", ["ewc", "si"]),
        ("auto", list(AUTO_SETTINGS)),
        ("auto+ewc", [*AUTO_SETTINGS, "ewc"]),
        ("replay+auto", ["replay", "distill"]),
        ("none+ewc", ["ewc"]),
        ("peft+ewc", ["peft", "ewc"]),
    ],
)
def test_parse_strategies(word, strategies):
    assert parse_strategies(word) == strategies == Forgetting.model_validate(word).strategies


@pytest.mark.parametrize(
    ("adapter", "continued", "word"),
    [(True, False, "auto"), (True, True, "auto"), (False, False, "interpolate"), (False, True, "auto")],
)
def test_auto_interpolates_where_every_weight_of_a_base_is_trained(adapter, continued, word):
    assert resolve_auto(adapter=adapter, continued=continued) == word


def test_auto_has_its_own_default_settings():
    defaults = STRATEGIES["replay"].settings()
    assert Forgetting().settings("replay") == defaults.model_copy(update=AUTO_SETTINGS["replay"]) != defaults
    assert Forgetting.model_validate("replay").settings("replay") == defaults
    assert Forgetting.model_validate({"replay": {"fraction": 0.2}}).settings("replay").fraction == 0.2
