"""Loss scaling changes nothing but the range of the gradients."""

import pytest
import torch

from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.gradient_reduction import GradientReduction
from pipelines.training.loss_scaling import LossScaler
from tests.two_processes import run_in_two_processes


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


def overflow_of_one_process(folder):
    """A step in which only the rows of process 1 overflow: the gradients, their factor, and whether it overflowed."""
    group, (layer, optimizer) = ProcessGroup.current(), layer_and_optimizer()
    reduction, scaler = GradientReduction(group, list(layer.parameters())), LossScaler(torch.device("cpu"), True)
    with reduction.last_backward_pass():
        scaler.scale(layer(torch.full((1, 4), 1e38 if group.rank else 1.0)).sum() * 1e3).backward()
    reduction.finish(torch.zeros(()))
    scaler.unscale_(optimizer)
    finite = [bool(parameter.grad.isfinite().all()) for parameter in layer.parameters()]
    return {"finite": finite, "overflowed": scaler.update(), "scale": scaler.state_dict()["scale"]}


def test_an_overflow_of_one_process_is_one_of_all(tmp_path):
    first, second = run_in_two_processes(overflow_of_one_process, tmp_path)
    assert first == second == {"finite": [False, True], "overflowed": True, "scale": 2.0**15}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_fp16_it_changes_nothing(dtype):
    layer, optimizer = layer_and_optimizer()
    scaler = LossScaler(torch.device("cpu"), False)
    loss = layer(torch.randn(8, 4)).square().mean()
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
    scaler.unscale_(optimizer)
    assert not scaler.update()
