"""Synaptic intelligence on a quadratic, where its importance is known."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.forgetting.penalty import lora_pairs
from pipelines.forgetting.strategies.si import PathIntegral, Si, SiFiles, SiSettings, factorize, lora_factors
from pipelines.modeling.loading import load_causal_lm
from tests.forgetting.tiny_lora import base, lora, rows, sgd


def gradient_descent(curvature, learning_rate, steps=400, penalty=0.0):
    theta = torch.nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))
    integral = PathIntegral([theta])
    for _ in range(steps):
        gradient = curvature * theta.detach()
        with torch.no_grad():
            theta -= learning_rate * (gradient + penalty * theta)
        integral.update([gradient])
    return integral


@pytest.mark.parametrize(("curvature", "learning_rate"), [(0.5, 0.1), (2.0, 0.1), (2.0, 0.5)])
def test_importance_of_a_quadratic_is_its_curvature(curvature, learning_rate):
    """½aθ² under gradient descent: Ω → a / (2 − ηa)."""
    importance = gradient_descent(curvature, learning_rate).importance(damping=1e-9)[0]
    expected = torch.full((3,), curvature / (2 - learning_rate * curvature))
    torch.testing.assert_close(importance, expected, rtol=1e-3, atol=1e-4)


def test_moves_by_a_penalty_count_by_the_change_of_the_loss():
    """Moves that the penalty made count by the loss that they changed, not by the penalty's own gradient."""
    start = torch.tensor([2.0, -1.0, 0.5])
    for integral in (gradient_descent(1.0, 0.05), gradient_descent(1.0, 0.05, penalty=1.0)):
        assert float(integral.omega[0].sum()) == pytest.approx(float(0.5 * (start**2).sum()), rel=0.06)


def test_moves_that_increased_the_loss_have_no_importance():
    theta = torch.nn.Parameter(torch.ones(2))
    integral = PathIntegral([theta])
    with torch.no_grad():
        theta += 0.1
    integral.update([torch.ones(2)])
    assert (integral.omega[0] < 0).all() and not integral.importance(0.1)[0].any()


def test_factors_preserve_row_and_column_sums():
    omega = torch.rand(5, 3)
    factors = factorize(omega)
    product = torch.outer(factors.output, factors.input)
    torch.testing.assert_close(product.sum(0), omega.sum(0))
    torch.testing.assert_close(product.sum(1), omega.sum(1))


def make_si(tmp_path, general_text, **settings):
    files = SiFiles(general=tmp_path / "general.safetensors", output=tmp_path / "output.safetensors")
    return Si(SiSettings(**settings), general_text, files, "a model")


@pytest.mark.parametrize("build", [base, lora])
def test_measuring_importance_restores_every_weight(tmp_path, build):
    model = build(tmp_path / "m").train()
    before = {name: (weight.detach().clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    si = make_si(tmp_path, rows(16), importance_steps=3)
    si.setup(model, sgd(model))
    assert (tmp_path / "general.safetensors").exists() and model.training
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name][0]) and weight.requires_grad == before[name][1] and weight.grad is None
    assert len(si.penalties) == 1


def test_lora_factors_are_the_row_sums_over_the_product(tmp_path):
    """The path integral over ΔW of a step in B: its row sums are those over B."""
    model = lora(tmp_path / "m", moved=True)
    pair = next(lora_pairs(model))
    dense = torch.randn(pair.lora_B.shape[0], pair.lora_A.shape[1])
    gradient_B = pair.scaling * dense @ pair.lora_A.detach().T
    step = 0.01 * torch.randn(pair.lora_B.shape)
    rows_of_product = -(dense * (pair.scaling * step @ pair.lora_A.detach())).sum(1)
    torch.testing.assert_close(-(gradient_B * step).sum(1), rows_of_product, rtol=1e-3, atol=1e-5)
    factors = lora_factors(pair, -(gradient_B * step), torch.rand(pair.lora_A.shape), damping=0.1)
    assert factors.output.shape == pair.lora_B.shape[:1] and (factors.output >= 0).all()
    assert float(factors.input.mean()) == pytest.approx(1)


def test_state_dict_restores_the_path_integral(tmp_path):
    model = lora(tmp_path / "m", moved=True)
    si = make_si(tmp_path, rows(16), importance_steps=3)
    si.setup(model, sgd(model))
    with torch.no_grad():
        for weight in si.path.weights:
            weight += 0.01
    si.after_step([torch.ones_like(weight) for weight in si.path.weights])
    resumed = make_si(tmp_path, rows(16), importance_steps=3)
    resumed.setup(model, sgd(model))
    resumed.load_state_dict(si.state_dict())
    for omega, resumed_omega in zip(si.path.omega, resumed.path.omega, strict=True):
        assert torch.equal(omega, resumed_omega) and omega.any()


def test_transposed_matrices_have_importance_by_outputs(tmp_path):
    """GPT-2's c_attn is [in, out] in the file; importance is by ΔW's rows, which are outputs."""
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(tmp_path / "gpt2", allow_half_precision=True), config)
    si = make_si(tmp_path, rows(), importance_steps=2)
    si.setup(model, sgd(model))
    (factors,) = si._measure_importance().values()
    assert factors.output.shape == (48,) and factors.input.shape == (16,)
