"""The quadratic penalties against their dense form, and at their limits."""

import pytest
import torch

from pipelines.forgetting.penalty import (
    KroneckerFactors,
    LoraQuadraticPenalty,
    ProximalQuadraticPenalty,
    cost_and_gradients,
    lora_pairs,
)
from tests.forgetting.tiny_lora import base, lora, sgd


def importance_of(pair, kind):
    torch.manual_seed(len(pair.module))
    out, inner = pair.lora_B.shape[0], pair.lora_A.shape[1]
    if kind == "factored":
        return KroneckerFactors(torch.rand(out), torch.rand(inner))
    if kind == "kronecker":
        rows, columns = torch.randn(out, out), torch.randn(inner, inner)
        return KroneckerFactors(rows @ rows.T, columns @ columns.T)
    return KroneckerFactors(torch.ones(()), torch.ones(()))


def dense_cost(pair, importance, up, down):
    change = pair.scaling * up @ down
    rows, columns = importance.output, importance.input
    if rows.ndim == 2:
        return 0.5 * (change * (rows @ change @ columns)).sum()
    weights = torch.outer(rows, columns) if rows.ndim == 1 else rows * columns
    return 0.5 * (weights * change**2).sum()


@pytest.mark.parametrize("kind", ["factored", "kronecker", "alike"])
def test_cost_and_gradients_are_those_of_the_product(tmp_path, kind):
    for pair in lora_pairs(lora(tmp_path / "m", moved=True)):
        importance = importance_of(pair, kind)
        up, down = pair.lora_B.detach().clone().requires_grad_(), pair.lora_A.detach().clone().requires_grad_()
        expected = dense_cost(pair, importance, up, down)
        by_up, by_down = torch.autograd.grad(expected, (up, down))
        cost, found_up, found_down = cost_and_gradients(
            pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance
        )
        torch.testing.assert_close(cost, expected.detach(), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(found_up, by_up, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found_down, by_down, rtol=1e-4, atol=1e-7)


def test_other_factors_of_the_same_product_cost_the_same(tmp_path):
    pair = next(lora_pairs(lora(tmp_path / "m", moved=True)))
    importance = importance_of(pair, "factored")
    before = cost_and_gradients(pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance)[0]
    with torch.no_grad():
        pair.lora_B.mul_(3)
        pair.lora_A.div_(3)
    after = cost_and_gradients(pair.lora_B.detach(), pair.lora_A.detach(), pair.scaling, importance)[0]
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("kind", ["factored", "kronecker", "alike"])
def test_a_spring_gives_every_matrix_its_own_gradient(tmp_path, kind):
    model = lora(tmp_path / "m", moved=True)
    pairs = list(lora_pairs(model))
    importance = {pair.module: importance_of(pair, kind) for pair in pairs}
    penalty = LoraQuadraticPenalty("ewc", 3.0, importance if kind != "alike" else None)
    penalty.setup(model, sgd(model))
    expected = sum(dense_cost(pair, importance[pair.module], pair.lora_B, pair.lora_A) for pair in pairs)
    gradients = torch.autograd.grad(3 * expected, [weight for pair in pairs for weight in (pair.lora_B, pair.lora_A)])
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    penalty.add_gradients()
    assert penalty.cost == pytest.approx(3 * float(expected), rel=1e-4)
    for weight, gradient in zip(
        (weight for pair in pairs for weight in (pair.lora_B, pair.lora_A)), gradients, strict=True
    ):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)


def test_at_the_start_a_lora_spring_pulls_at_nothing(tmp_path):
    model = lora(tmp_path / "m")
    penalty = LoraQuadraticPenalty("l2sp", 5.0, None)
    penalty.setup(model, sgd(model))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    penalty.add_gradients()
    assert penalty.cost == 0 and all(not weight.grad.any() for weight in model.parameters())


def test_strength_is_a_factor(tmp_path):
    model = lora(tmp_path / "m", moved=True)
    gradients = []
    for strength in (1.0, 3.0):
        penalty = LoraQuadraticPenalty("l2sp", strength, None)
        penalty.setup(model, sgd(model))
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        penalty.add_gradients()
        gradients.append((penalty.cost, [w.grad.clone() for w in model.parameters() if w.requires_grad]))
    assert gradients[1][0] == pytest.approx(3 * gradients[0][0])
    for one, three in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(3 * one, three)


class One(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([0.0]))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("strength", [0.5, 1.0, 1e6])
def test_a_weight_spring_rests_where_both_forces_are_equal(kind, strength):
    """min ½a(θ − b)² + ½λF(θ − θ₀)², from θ₀ = 0: θ = ab / (a + λF), whatever the optimiser and however stiff."""
    a, b, fisher = 2.0, 3.0, 0.7
    model = One()
    options = {"weight_decay": 0.0} if kind is torch.optim.AdamW else {}
    optimizer = kind(model.parameters(), lr=0.02, **options)
    penalty = ProximalQuadraticPenalty("ewc", strength, {"theta": torch.tensor([fisher])})
    penalty.setup(model, optimizer)
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * a * (model.theta - b) ** 2).sum().backward()
        optimizer.step()
        penalty.after_step([])
    assert float(model.theta) == pytest.approx(a * b / (a + strength * fisher), rel=0.03, abs=1e-4)


def test_no_strength_touches_no_bit(tmp_path):
    model = base(tmp_path / "m")
    optimizer = sgd(model)
    penalty = ProximalQuadraticPenalty("l2sp", 0.0, None)
    penalty.setup(model, optimizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1
    before = [weight.detach().clone() for weight in model.parameters()]
    penalty.after_step([])
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
