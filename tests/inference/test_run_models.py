"""Base and tuned model in one process: packed weights leave the answers of both as they are."""

import pytest
import torch

from pipelines.inference.engine import load_engine
from pipelines.inference.requests import GenerationRequest
from pipelines.modeling.equivalence import probe_logits
from tests.inference.tiny_run import load_models, make_run


@pytest.mark.parametrize("adapter", [True, False])
@torch.inference_mode()
def test_each_model_computes_with_its_own_packed_weights(adapter, tmp_path):
    models = load_models(make_run(tmp_path, adapter=adapter))
    expected = {}
    for name in ("base", "tuned"):
        with models.active(name) as loaded:
            expected[name] = probe_logits(loaded.model)
    assert (expected["tuned"] - expected["base"]).abs().max() > 0.01
    models.pack_weights()
    if torch.backends.mkldnn.is_available():
        assert set(models._packed) == {"base", "tuned"}
    for name in ("tuned", "base", "tuned"):
        with models.active(name) as loaded:
            torch.testing.assert_close(probe_logits(loaded.model), expected[name], atol=1e-4, rtol=1e-4)


def test_the_engine_starts_with_packed_weights(tmp_path):
    models = load_models(make_run(tmp_path))
    prompt = [30, 40, 50]
    with load_engine(models) as engine:
        packed = [engine.submit(GenerationRequest(name, prompt, 12)).result().tokens for name in ("base", "tuned")]
    # The same folder: the models are drawn at random.
    with load_engine(load_models(models.run)) as other:
        other.models._packed.clear()
        plain = [other.submit(GenerationRequest(name, prompt, 12)).result().tokens for name in ("base", "tuned")]
    assert packed == plain
