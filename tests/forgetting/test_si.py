"""Synaptic intelligence on a quadratic, where its importance is known."""

import pytest
import torch

from pipelines.config.forgetting import Si as Settings
from pipelines.forgetting.penalty import lora_pairs
from pipelines.forgetting.si import PathIntegral, Si, as_factors, lora_factors
from tests.forgetting.tiny_lora import base, lora, rows, sgd


def descend(curvature, rate, steps=400, spring=0.0):
    theta = torch.nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))
    integral = PathIntegral([theta])
    for _ in range(steps):
        gradient = curvature * theta.detach()
        with torch.no_grad():
            theta -= rate * (gradient + spring * theta)
        integral.update([gradient])
    return integral


@pytest.mark.parametrize(("curvature", "rate"), [(0.5, 0.1), (2.0, 0.1), (2.0, 0.5)])
def test_on_a_quadratic_it_is_the_curvature(curvature, rate):
    """½aθ² under gradient descent: Ω → a / (2 − ηa)."""
    found = descend(curvature, rate).importance(damping=1e-9)[0]
    torch.testing.assert_close(found, torch.full((3,), curvature / (2 - rate * curvature)), rtol=1e-3, atol=1e-4)


def test_a_penalty_is_no_merit():
    """Moves that the penalty made count by the loss that they changed, not by the penalty's own gradient."""
    plain, pulled = descend(1.0, 0.05), descend(1.0, 0.05, spring=1.0)
    start = torch.tensor([2.0, -1.0, 0.5])
    for integral in (plain, pulled):
        assert float(integral.omega[0].sum()) == pytest.approx(float(0.5 * (start**2).sum()), rel=0.06)


def test_moves_that_did_harm_count_for_nothing():
    theta = torch.nn.Parameter(torch.ones(2))
    integral = PathIntegral([theta])
    with torch.no_grad():
        theta += 0.1
    integral.update([torch.ones(2)])
    assert (integral.omega[0] < 0).all() and not integral.importance(0.1)[0].any()


def test_factors_keep_the_row_and_column_sums():
    omega = torch.rand(5, 3)
    factors = as_factors(omega)
    product = torch.outer(factors.output, factors.input)
    torch.testing.assert_close(product.sum(0), omega.sum(0))
    torch.testing.assert_close(product.sum(1), omega.sum(1))


def make(tmp_path, strength=1.0, **more):
    return Si(
        Settings(weight=strength, importance_steps=3, **more),
        rows(16),
        tmp_path / "warm.safetensors",
        "a model",
        0,
        None,
        tmp_path / "kept.safetensors",
    )


@pytest.mark.parametrize("build", [base, lora])
def test_the_warm_pass_puts_every_weight_back(tmp_path, build):
    model = build(tmp_path / "m").train()
    before = {name: (weight.detach().clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    si = make(tmp_path)
    si.setup(model, sgd(model))
    assert (tmp_path / "warm.safetensors").exists() and model.training
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name][0]) and weight.requires_grad == before[name][1] and weight.grad is None
    importance = [one for held in si.penalties for one in held.held]
    assert importance


def test_what_a_lora_moved_is_kept_by_rows_and_columns(tmp_path):
    """The path integral over ΔW of a step in B alone: its row sums are those over B."""
    model = lora(tmp_path / "m", moved=True)
    pair = next(lora_pairs(model))
    dense = torch.randn(pair.lora_B.shape[0], pair.lora_A.shape[1])
    by_up = pair.scaling * dense @ pair.lora_A.detach().T
    step = 0.01 * torch.randn(pair.lora_B.shape)
    rows_of_product = -(dense * (pair.scaling * step @ pair.lora_A.detach())).sum(1)
    torch.testing.assert_close(-(by_up * step).sum(1), rows_of_product, rtol=1e-3, atol=1e-5)
    factors = lora_factors(pair, -(by_up * step), torch.rand(pair.lora_A.shape), damping=0.1)
    assert factors.output.shape == pair.lora_B.shape[:1] and (factors.output >= 0).all()
    assert float(factors.input.mean()) == pytest.approx(1)


def test_its_state_comes_back(tmp_path):
    model = lora(tmp_path / "m", moved=True)
    si = make(tmp_path)
    si.setup(model, sgd(model))
    with torch.no_grad():
        for weight in si.path.weights:
            weight += 0.01
    si.after_step([torch.ones_like(weight) for weight in si.path.weights])
    again = make(tmp_path)
    again.setup(model, sgd(model))
    again.load_state_dict(si.state_dict())
    for one, other in zip(si.path.omega, again.path.omega, strict=True):
        assert torch.equal(one, other) and one.any()


def test_a_matrix_that_is_kept_the_other_way_round(tmp_path):
    """GPT-2's c_attn is [in, out] in the file; importance is by ΔW's rows, which are outputs."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from pipelines.modeling.loading import load_causal_lm

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path / "gpt2"
    )
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(tmp_path / "gpt2", frozen=True), config)
    si = Si(
        Settings(weight=1.0, importance_steps=2),
        rows(),
        tmp_path / "warm.safetensors",
        "it",
        0,
        None,
        tmp_path / "kept.safetensors",
    )
    si.setup(model, sgd(model))
    (found,) = si.penalties[0].importance.values()
    assert found.rows.shape == (48,) and found.columns.shape == (16,)
