"""KL divergence from the base on its own answers."""

import pytest

from pipelines.evaluation.retention import score_retention_eval
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.evaluation.retention_evals.files import load, prepare


def test_score_is_the_mean_divergence_per_token(files):
    loaded = load(files / "m")
    with loaded.model.disable_adapter():
        prepared = prepare(loaded)["kl"]
    base = ReferenceModel(loaded.model)
    divergences = kl_divergence(base.logits(prepared.items), supervised_logits(loaded.model, prepared.items)[0])
    expected = [float(item.detach().mean()) for item in divergences.split(prepared.items.supervised_lengths)]
    scores = score_retention_eval(loaded, prepared, base.logits)
    assert scores == pytest.approx(expected, rel=1e-3) and min(scores) > 0


def test_base_generates_its_answers_once(files):
    loaded, calls = load(files / "m", moved=False), []

    def load_model():
        calls.append(1)
        return loaded

    for _ in range(2):
        prepare(loaded, load_model=load_model)
    assert len(calls) == 1
