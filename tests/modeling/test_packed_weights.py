"""Packed weights: the outputs of the model, with and without an adapter, and nothing left behind."""

import pytest
import torch
from torch import nn

from pipelines.modeling import packed_weights as module
from pipelines.modeling.adapters import adapter_disabled
from pipelines.modeling.equivalence import probe_logits
from pipelines.modeling.packed_weights import PackedWeights, packed_weights
from tests.forgetting.tiny_lora import lora

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def model(tmp_path):
    return lora(tmp_path / "m", moved=True).eval()


def test_outputs_are_those_of_the_model(model):
    tuned = probe_logits(model)
    with adapter_disabled(model):
        base = probe_logits(model)
    assert (tuned - base).abs().max() > 0.1
    with packed_weights(model) as is_packed:
        assert is_packed
        torch.testing.assert_close(probe_logits(model), tuned, atol=1e-4, rtol=1e-4)
    with adapter_disabled(model), packed_weights(model) as is_packed:
        assert is_packed
        torch.testing.assert_close(probe_logits(model), base, atol=1e-4, rtol=1e-4)
    assert torch.equal(probe_logits(model), tuned)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_an_adapter_that_is_disabled_within_the_block(model):
    tuned = probe_logits(model)
    with adapter_disabled(model):
        base = probe_logits(model)
    with packed_weights(model):
        with adapter_disabled(model):
            torch.testing.assert_close(probe_logits(model), base, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(probe_logits(model), tuned, atol=1e-4, rtol=1e-4)


def test_adapted_layers_compute_one_product(model):
    packed = PackedWeights.pack(model)
    names = {id(layer): name for name, layer in model.named_modules()}
    replaced = [names[id(layer)] for layer, *_ in packed.layers]
    assert any(name.endswith("q_proj") for name in replaced)
    assert not any("lora_" in name or "base_layer" in name for name in replaced)


def test_gradients_are_those_of_the_model(model):
    parameter = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)
    ids = torch.tensor([[5, 6, 7]])
    gradients = []
    with packed_weights(model):
        model(ids).logits.sum().backward()
        gradients.append(parameter.grad.clone())
    parameter.grad = None
    model(ids).logits.sum().backward()
    assert torch.equal(parameter.grad, gradients[0]) and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("reason", ["memory", "training", "half", "operators", "logits"])
def test_models_that_are_not_packed(reason, model, monkeypatch):
    if reason == "memory":
        monkeypatch.setattr(module, "free_memory", lambda device: 1)
    elif reason == "training":
        model.train()
    elif reason == "half":
        model.to(torch.bfloat16)
    elif reason == "operators":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        merged = module._merged_weight
        monkeypatch.setattr(module, "_merged_weight", lambda layer: merged(layer) * 1.01)
    for _ in range(2):
        with packed_weights(model) as is_packed:
            assert not is_packed
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_layers_that_others_replaced_are_left_to_them():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    vars(model[0])["forward"] = lambda x: x
    assert [layer for layer, *_ in module._packed_layers(model)] == [model[1]]
