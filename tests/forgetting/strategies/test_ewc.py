"""Elastic weight consolidation: one penalty per text, with the cached Fisher information."""

import pytest

from pipelines.forgetting.strategies.ewc import Ewc, EwcSettings, FisherText
from tests.forgetting.tiny_lora import base, lora, rows, sgd


def make_ewc(tmp_path, factors=(1.0,), **settings):
    texts = [
        FisherText(rows(4, seed=index), tmp_path / f"fisher_{index}", factor) for index, factor in enumerate(factors)
    ]
    return Ewc(EwcSettings(**settings), texts, "a model", seed=0)


@pytest.mark.parametrize("build", [base, lora])
def test_every_text_has_a_penalty_with_its_factor(tmp_path, build):
    model = build(tmp_path / "m")
    ewc = make_ewc(tmp_path, factors=(1.0, 0.5), weight=3.0)
    ewc.setup(model, sgd(model))
    assert [penalty.weight for penalty in ewc.penalties] == [3.0, 1.5]
    assert ewc.metrics() == {"ewc": 0.0}
    assert (tmp_path / "fisher_0").exists() and (tmp_path / "fisher_1").exists()


def test_a_weight_of_zero_measures_nothing(tmp_path):
    model = lora(tmp_path / "m")
    ewc = make_ewc(tmp_path, weight=0.0)
    ewc.setup(model, sgd(model))
    ewc.add_gradients()
    ewc.after_step([])
    assert ewc.metrics() == {} and ewc.proximal_grad_norm == 0 and not (tmp_path / "fisher_0").exists()
