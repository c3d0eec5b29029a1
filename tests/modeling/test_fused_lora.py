"""Fused LoRA layers give the outputs and gradients of PEFT's."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling.attention import SHARED
from pipelines.modeling.fused_lora import FusedLoraLinear, fuse_lora_layers
from pipelines.modeling.packing import token_losses
from tests.modeling.test_packing import sequences_with_shared_prefix
from tests.tiny import make_model

TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]


def lora_model(folder, dtype=torch.float32, **settings):
    model = AutoModelForCausalLM.from_pretrained(make_model(folder), attn_implementation=SHARED["loop"], dtype=dtype)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1
    return model.train()


def losses_and_gradients(model, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = token_losses(model, sequences_with_shared_prefix())
    losses.sum().backward()
    return losses.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def test_losses_and_gradients_equal_those_of_peft(tmp_path):
    model = lora_model(tmp_path)
    fused = copy.deepcopy(model)
    assert fuse_lora_layers(fused) == 2 * len(TARGETS)
    expected, actual = losses_and_gradients(model), losses_and_gradients(fused)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert len(actual[1]) == 2 * 2 * len(TARGETS)


def test_in_bf16_they_are_as_close_to_fp32_as_those_of_peft(tmp_path):
    _, exact = losses_and_gradients(lora_model(tmp_path / "a"))
    errors = {}
    for is_fused in (False, True):
        model = lora_model(tmp_path / "b", torch.bfloat16)
        if is_fused:
            fuse_lora_layers(model)
        _, gradients = losses_and_gradients(model, autocast=True)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        errors[is_fused] = sum(float((gradients[name] - exact[name]).square().sum()) for name in exact)
    assert errors[True] ** 0.5 < 1.3 * errors[False] ** 0.5


def test_what_peft_can_do_besides_still_works(tmp_path):
    model = lora_model(tmp_path)
    fused = copy.deepcopy(model)
    fuse_lora_layers(fused)
    sequences = sequences_with_shared_prefix()
    with torch.no_grad():
        with model.disable_adapter(), fused.disable_adapter():
            torch.testing.assert_close(token_losses(fused, sequences), token_losses(model, sequences), rtol=0, atol=0)
        expected = token_losses(model, sequences)
        for one in (model, fused):
            one.merge_adapter()
        torch.testing.assert_close(token_losses(fused, sequences), token_losses(model, sequences), rtol=0, atol=0)
        fused.unmerge_adapter()
        torch.testing.assert_close(token_losses(fused, sequences), expected, rtol=1e-5, atol=1e-5)
    assert fused.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_variants_and_dropout_are_left_to_peft(tmp_path, settings):
    model = lora_model(tmp_path, **settings)
    fused = copy.deepcopy(model)
    fuse_lora_layers(fused)
    results = []
    for one in (model, fused):
        torch.manual_seed(5)
        results.append(losses_and_gradients(one))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_hooks_on_the_matrices_are_called(tmp_path):
    model, calls = lora_model(tmp_path), []
    fuse_lora_layers(model)
    layer = next(module for module in model.modules() if isinstance(module, FusedLoraLinear))
    layer.lora_A["default"].register_forward_hook(lambda *_: calls.append("A"))
    losses_and_gradients(model)
    assert calls == ["A"]


def test_a_linear_layer_that_is_trained_for_a_while_gets_its_gradient(tmp_path):
    model = lora_model(tmp_path)
    fuse_lora_layers(model)
    weight = next(module for module in model.modules() if type(module) is FusedLoraLinear).get_base_layer().weight
    weight.requires_grad_(True)
    token_losses(model, sequences_with_shared_prefix()).sum().backward()
    assert weight.grad.any()
