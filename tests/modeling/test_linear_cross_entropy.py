import pytest
import torch
import torch.nn.functional as F

from pipelines.modeling.linear_cross_entropy import (
    _losses_and_gradient,
    _losses_and_gradient_on_gpu,
    linear_cross_entropy,
)


@pytest.mark.parametrize("compute", [_losses_and_gradient, _losses_and_gradient_on_gpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradient_equal_those_of_autograd(compute, dtype):
    torch.manual_seed(0)
    logits = (4 * torch.randn(5, 11)).to(dtype)
    targets = torch.tensor([0, 10, 3, 3, 7])
    inputs = logits.float().requires_grad_()
    expected = F.cross_entropy(inputs, targets, reduction="none")
    expected.sum().backward()
    losses, gradient = compute(logits.clone(), targets, True)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, inputs.grad)
    losses, gradient = compute(logits.clone(), targets, False)
    torch.testing.assert_close(losses, expected.detach())
    assert gradient is None


@pytest.mark.parametrize("max_logits", [1, 2**23])
def test_chunks_do_not_change_the_result(max_logits, monkeypatch):
    monkeypatch.setattr("pipelines.modeling.linear_cross_entropy.MAX_LOGITS_PER_CHUNK", max_logits)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 13).requires_grad_(False)
    hidden, targets = torch.randn(300, 8), torch.randint(0, 13, (300,))
    inputs = hidden.clone().requires_grad_()
    expected_inputs = hidden.clone().requires_grad_()
    losses = linear_cross_entropy(inputs, head, targets)
    expected = F.cross_entropy(head(expected_inputs), targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    weights = torch.rand(300)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs.grad, expected_inputs.grad)
