"""Adapters merged for a block: the same logits within it, and bitwise the same weights after it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipelines.modeling import merged_adapter
from pipelines.modeling.adapters import adapter_disabled
from pipelines.modeling.equivalence import probe_logits
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.merged_adapter import adapter_merged, logits_agree
from tests.modeling.adapter_cases import CASES, attached, make_biased, move
from tests.tiny import make_model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def lora(folder, dtype=torch.float32, targets=("q_proj", "down_proj")):
    torch.manual_seed(1)
    model = load_causal_lm(make_model(folder), allow_half_precision=True).to(dtype)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM"))
    move(model)
    return model.eval()


@pytest.mark.ludwig
@pytest.mark.parametrize("name", [name for name, (kind, _) in CASES.items() if kind == "lora"])
def test_every_kind_of_lora_is_merged_or_left_and_restored_bitwise(tmp_path, name):
    model = attached(make_biased(tmp_path / "base"), name).eval()
    move(model)
    before, logits = state(model), probe_logits(model)
    with adapter_disabled(model):
        disabled = probe_logits(model)
    with adapter_merged(model, merge=True) as is_merged:
        torch.testing.assert_close(probe_logits(model), logits, atol=1e-3, rtol=1e-3)
        assert is_merged or "tied" in name or "embedding" in name
        if not is_merged:
            assert torch.equal(probe_logits(model), logits)
    assert_unchanged(model, before)
    assert torch.equal(probe_logits(model), logits)
    with adapter_disabled(model):
        assert torch.equal(probe_logits(model), disabled)


@pytest.mark.ludwig
@pytest.mark.parametrize("name", [name for name, (kind, _) in CASES.items() if kind != "lora"])
def test_other_adapters_are_not_merged(tmp_path, name):
    with adapter_merged(attached(make_biased(tmp_path / "base"), name), merge=True) as is_merged:
        assert not is_merged


def test_merged_layers_compute_one_product(tmp_path):
    model = lora(tmp_path / "base")
    products = []
    for name, module in model.named_modules():
        if "lora_A." in name:
            module.register_forward_hook(lambda *args: products.append(1))
    with adapter_merged(model, merge=True) as is_merged:
        assert is_merged
        products.clear()
        probe_logits(model)
        assert not products
    probe_logits(model)
    assert products


def test_an_adapter_on_one_of_two_tied_matrices_is_not_merged(tmp_path):
    model = lora(tmp_path / "base", targets=("lm_head",))
    before = state(model)
    with adapter_merged(model, merge=True) as is_merged:
        assert not is_merged
        assert_unchanged(model, before)


def test_weights_are_restored_after_an_exception(tmp_path):
    model = lora(tmp_path / "base")
    before = state(model)
    with pytest.raises(KeyboardInterrupt), adapter_merged(model, merge=True):
        raise KeyboardInterrupt
    assert_unchanged(model, before)


def test_nothing_is_merged_on_a_cpu_unless_requested(tmp_path):
    model = lora(tmp_path / "base")
    with adapter_merged(model) as is_merged:
        assert not is_merged
    with adapter_merged(model.get_base_model(), merge=True) as is_merged:
        assert not is_merged


def test_weights_are_restored_bitwise_in_bf16(tmp_path):
    model = lora(tmp_path / "base", dtype=torch.bfloat16)
    before = state(model)
    with adapter_merged(model, merge=True):
        pass
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "dtype, error, is_exact, is_close",
    [
        (torch.float32, 1e-6, True, True),
        (torch.float32, 1e-2, False, False),
        (torch.bfloat16, 1e-2, True, True),
        (torch.bfloat16, 4e-2, False, True),
        (torch.bfloat16, 0.2, False, False),
    ],
)
def test_what_is_exact_enough(dtype, error, is_exact, is_close):
    expected = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    assert logits_agree(expected + error, expected, dtype, strict=True) == is_exact
    assert logits_agree(expected + error, expected, dtype, strict=False) == is_close


def test_unless_requested_the_most_likely_tokens_must_agree():
    expected = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    other = expected.clone()
    other[3, expected[3].argmax()] = -9
    assert not logits_agree(other, expected, torch.bfloat16, strict=True)
    assert logits_agree(other, expected, torch.bfloat16, strict=False)


def test_a_merge_that_is_too_far_off_is_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(merged_adapter, "logits_agree", lambda *args: False)
    model = lora(tmp_path / "base")
    before = state(model)
    with adapter_merged(model, merge=True) as is_merged:
        assert not is_merged
        assert_unchanged(model, before)
