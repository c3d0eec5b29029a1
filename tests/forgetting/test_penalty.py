"""The quadratic penalties against their dense form, and at their limits."""

import pytest
import torch

from pipelines.forgetting.penalty import (
    FactoredImportance,
    LoraQuadraticPenalty,
    PenaltySet,
    ProximalQuadraticPenalty,
    lora_pairs,
    value_and_gradients,
)
from tests.forgetting.tiny_lora import base, lora, sgd


def importance_of(pair, kind):
    torch.manual_seed(len(pair.module))
    out_features, in_features = pair.lora_B.shape[0], pair.lora_A.shape[1]
    if kind == "factored":
        return FactoredImportance(torch.rand(out_features), torch.rand(in_features))
    if kind == "kronecker":
        output, input = torch.randn(out_features, out_features), torch.randn(in_features, in_features)
        return FactoredImportance(output @ output.T, input @ input.T)
    return FactoredImportance(torch.ones(()), torch.ones(()))


def dense_value(pair, importance, lora_B, lora_A):
    delta = pair.scaling * lora_B @ lora_A
    output, input = importance.output, importance.input
    if output.ndim == 2:
        return 0.5 * (delta * (output @ delta @ input)).sum()
    weights = torch.outer(output, input) if output.ndim == 1 else output * input
    return 0.5 * (weights * delta**2).sum()


def matrices(pairs):
    return [matrix for pair in pairs for matrix in (pair.lora_B, pair.lora_A)]


def zero_gradients(model):
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)


@pytest.mark.parametrize("kind", ["factored", "kronecker", "constant"])
def test_value_and_gradients_equal_the_dense_ones(tmp_path, kind):
    for pair in lora_pairs(lora(tmp_path / "m", moved=True)):
        importance = importance_of(pair, kind)
        lora_B, lora_A = pair.lora_B.detach().clone().requires_grad_(), pair.lora_A.detach().clone().requires_grad_()
        expected = dense_value(pair, importance, lora_B, lora_A)
        expected_gradients = torch.autograd.grad(expected, (lora_B, lora_A))
        value, *gradients = value_and_gradients(pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-8)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_penalty_value_is_invariant_under_rescaled_factors(tmp_path):
    pair = next(lora_pairs(lora(tmp_path / "m", moved=True)))
    importance = importance_of(pair, "factored")
    before = value_and_gradients(pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance)[0]
    with torch.no_grad():
        pair.lora_B.mul_(3)
        pair.lora_A.div_(3)
    after = value_and_gradients(pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance)[0]
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("kind", ["factored", "kronecker", "constant"])
def test_lora_penalty_adds_the_dense_gradient_to_every_matrix(tmp_path, kind):
    model = lora(tmp_path / "m", moved=True)
    pairs = list(lora_pairs(model))
    importance = {pair.module: importance_of(pair, kind) for pair in pairs}
    penalty = LoraQuadraticPenalty(model, 3.0, importance if kind != "constant" else None)
    expected = sum(dense_value(pair, importance[pair.module], pair.lora_B, pair.lora_A) for pair in pairs)
    gradients = torch.autograd.grad(3 * expected, matrices(pairs))
    zero_gradients(model)
    penalty.add_gradients()
    assert penalty.value == pytest.approx(3 * float(expected.detach()), rel=1e-4)
    for matrix, gradient in zip(matrices(pairs), gradients, strict=True):
        torch.testing.assert_close(matrix.grad, gradient, rtol=1e-3, atol=1e-6)


def test_lora_penalty_is_zero_at_the_start(tmp_path):
    model = lora(tmp_path / "m")
    penalty = LoraQuadraticPenalty(model, 5.0, None)
    zero_gradients(model)
    penalty.add_gradients()
    assert penalty.value == 0 and all(not weight.grad.any() for weight in model.parameters())


def test_weight_is_a_factor_of_value_and_gradients(tmp_path):
    model = lora(tmp_path / "m", moved=True)
    values, gradients = [], []
    for weight in (1.0, 3.0):
        penalty = LoraQuadraticPenalty(model, weight, None)
        zero_gradients(model)
        penalty.add_gradients()
        values.append(penalty.value)
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad])
    assert values[1] == pytest.approx(3 * values[0])
    for single, triple in zip(*gradients, strict=True):
        torch.testing.assert_close(3 * single, triple)


class OneParameter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([0.0]))


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("weight", [0.5, 1.0, 1e6])
def test_proximal_penalty_converges_to_the_minimum_of_loss_and_penalty(optimizer_class, weight):
    """min ½a(θ − b)² + ½λF(θ − θ₀)², from θ₀ = 0: θ = ab / (a + λF), whatever the optimizer and however large λ."""
    a, b, fisher = 2.0, 3.0, 0.7
    model = OneParameter()
    options = {"weight_decay": 0.0} if optimizer_class is torch.optim.AdamW else {}
    optimizer = optimizer_class(model.parameters(), lr=0.02, **options)
    penalty = ProximalQuadraticPenalty(model, optimizer, weight, {"theta": torch.tensor([fisher])})
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * a * (model.theta - b) ** 2).sum().backward()
        optimizer.step()
        penalty.after_step()
    assert float(model.theta.detach()) == pytest.approx(a * b / (a + weight * fisher), rel=0.03, abs=1e-4)


def test_proximal_penalty_with_weight_zero_changes_no_bit(tmp_path):
    model = base(tmp_path / "m")
    penalty = ProximalQuadraticPenalty(model, sgd(model), 0.0, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    before = [parameter.detach().clone() for parameter in model.parameters()]
    penalty.after_step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_penalty_set_sums_its_penalties(tmp_path):
    model = lora(tmp_path / "m", moved=True)
    single, double = (PenaltySet("l2sp", model, sgd(model)) for _ in range(2))
    single.add(3.0, None)
    for weight in (1.0, 2.0):
        double.add(weight, None)
    gradients = []
    for penalties in (single, double):
        zero_gradients(model)
        penalties.add_gradients()
        penalties.after_step()
        gradients.append([matrix.grad.clone() for matrix in matrices(lora_pairs(model))])
    assert (len(single), len(double)) == (1, 2)
    assert double.value == pytest.approx(single.value) and double.grad_norm == 0
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("build", "kind"), [(base, ProximalQuadraticPenalty), (lora, LoraQuadraticPenalty)])
def test_a_penalty_set_selects_the_penalty_that_fits_the_model(tmp_path, build, kind):
    model = build(tmp_path / "m")
    penalties = PenaltySet("l2sp", model, sgd(model))
    penalties.add(1.0, None)
    assert [type(penalty) for penalty in penalties] == [kind]
