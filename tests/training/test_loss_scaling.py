"""Loss scaling changes nothing but the range of the gradients."""

import pytest
import torch

from pipelines.training.loss_scaling import LossScaler


def layer_and_optimizer():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    return layer, torch.optim.SGD(layer.parameters(), lr=0.1)


def test_gradients_and_copies_are_those_without_scaling():
    layer, optimizer = layer_and_optimizer()
    x = torch.randn(8, 4)
    layer(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    optimizer.zero_grad()
    scaler = LossScaler(torch.device("cpu"), True)
    scaler.scale(layer(x).square().mean()).backward()
    copies = [parameter.grad.clone() for parameter in layer.parameters()]
    assert copies[0].norm() > 1000 * expected[0].norm()
    scaler.unscale_(optimizer, copies)
    torch.testing.assert_close([parameter.grad for parameter in layer.parameters()], expected)
    torch.testing.assert_close(copies, expected)
    assert not scaler.update()


def test_an_overflow_halves_the_factor_and_its_state_is_restored():
    layer, optimizer = layer_and_optimizer()
    scaler = LossScaler(torch.device("cpu"), True)
    factor = scaler.state_dict()["scale"]
    scaler.scale(layer(torch.full((1, 4), 1e38)).sum() * 1e3).backward()
    scaler.unscale_(optimizer)
    assert scaler.update()
    assert scaler.state_dict()["scale"] == factor / 2
    restored = LossScaler(torch.device("cpu"), True)
    restored.load_state_dict(scaler.state_dict())
    assert restored.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_fp16_it_changes_nothing(dtype):
    layer, optimizer = layer_and_optimizer()
    scaler = LossScaler(torch.device("cpu"), False)
    loss = layer(torch.randn(8, 4)).square().mean()
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
    scaler.unscale_(optimizer)
    assert not scaler.update()
