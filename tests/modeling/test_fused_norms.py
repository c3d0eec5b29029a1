"""RMSNorm layers by torch's kernel give the outputs and gradients of transformers' layers."""

import copy

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from pipelines.modeling.attention import candidate_attention
from pipelines.modeling.fused_norms import fuse_rms_norms
from pipelines.modeling.packing import token_losses
from tests.modeling.test_packing import SMALL, unrelated_sequences

GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
NORMS = {"LlamaConfig": 5, "Qwen3Config": 9, "GemmaConfig": 5, "Gemma3TextConfig": 13, "PhiConfig": 0}


def random_model(name, dtype):
    torch.manual_seed(0)
    config = getattr(transformers, name)(**GROUPED)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.set_attn_implementation(candidate_attention(type(model), config))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_losses_and_gradients_equal_those_of_transformers(name, dtype):
    model = random_model(name, dtype)
    fused = copy.deepcopy(model)
    assert fuse_rms_norms(fused) == NORMS[name]
    results = []
    for one in (model, fused):
        losses = token_losses(one, unrelated_sequences())
        losses.sum().backward()
        results.append([losses.detach(), *(parameter.grad for parameter in one.parameters())])
    for actual, expected in zip(results[1], results[0], strict=True):
        error = (actual.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_a_layer_with_another_formula_is_left_alone():
    class ScaledRMSNorm(torch.nn.Module):
        eps = 1e-6

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, hidden_states):
            return 2 * hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + self.eps)

    assert fuse_rms_norms(torch.nn.Sequential(ScaledRMSNorm())) == 0
