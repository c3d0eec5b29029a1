"""Loss scaling changes nothing but the range of the gradients."""

import pytest
import torch

from pipelines.modeling.loss_scaling import LossScaler
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.gradient_reduction import GradientReduction
from tests.two_processes import run_in_two_processes


def layer_and_weights():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    return layer, list(layer.parameters())


def test_gradients_and_copies_are_those_without_scaling():
    layer, weights = layer_and_weights()
    x = torch.randn(8, 4)
    layer(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in weights]
    layer.zero_grad()
    scaler = LossScaler(True)
    scaler.scale(layer(x).square().mean()).backward()
    copies = [parameter.grad.clone() for parameter in weights]
    assert copies[0].norm() > 1000 * expected[0].norm()
    scaler.unscale_(weights, copies)
    torch.testing.assert_close([parameter.grad for parameter in weights], expected)
    torch.testing.assert_close(copies, expected)
    assert not scaler.update()


def test_an_overflow_halves_the_factor_and_its_state_is_restored():
    layer, weights = layer_and_weights()
    scaler = LossScaler(True)
    factor = scaler.state_dict()["scale"]
    scaler.scale(layer(torch.full((1, 4), 1e38)).sum() * 1e3).backward()
    scaler.unscale_(weights)
    assert scaler.update()
    assert scaler.state_dict()["scale"] == factor / 2
    restored = LossScaler(True)
    restored.load_state_dict(scaler.state_dict())
    assert restored.state_dict() == scaler.state_dict()


def test_the_factor_is_that_of_torchs_scaler(monkeypatch):
    monkeypatch.setattr("pipelines.modeling.loss_scaling.STEPS_UNTIL_GROWTH", 4)
    expected = torch.amp.GradScaler("cpu", growth_interval=4)
    scaler, (_, weights) = LossScaler(True), layer_and_weights()
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        overflows = bool(torch.rand(1, generator=random) < 0.2)
        for weight in weights:
            weight.grad = torch.full_like(weight, torch.inf if overflows else 1.0)
        optimizer = torch.optim.SGD(weights, lr=0.1)
        expected.scale(torch.ones(()))
        expected.unscale_(optimizer)
        expected.update()
        scaler.unscale_(weights)
        assert scaler.update() == overflows
        assert scaler.factor == expected.get_scale()
    loaded = LossScaler(True)
    loaded.load_state_dict(expected.state_dict())
    assert loaded.state_dict() == scaler.state_dict()


def test_an_overflow_that_scaling_does_not_cause_is_none():
    """With factor 1 the gradients are those of the loss itself: the step is not finite without scaling either."""
    scaler, (_, weights) = LossScaler(True), layer_and_weights()
    scaler.load_state_dict({"scale": 2.0, "_growth_tracker": 0})
    causes = []
    for _ in range(2):
        weights[0].grad = torch.full_like(weights[0], torch.nan)
        scaler.unscale_(weights)
        causes.append(scaler.update())
    assert causes == [True, False]


def overflow_of_one_process(folder):
    """A step in which only the rows of process 1 overflow: the gradients, their factor, and whether it overflowed."""
    group, (layer, weights) = ProcessGroup.current(), layer_and_weights()
    reduction, scaler = GradientReduction(group, weights), LossScaler(True)
    with reduction.last_backward_pass():
        scaler.scale(layer(torch.full((1, 4), 1e38 if group.rank else 1.0)).sum() * 1e3).backward()
    reduction.finish(torch.zeros(()))
    scaler.unscale_(weights)
    finite = [bool(parameter.grad.isfinite().all()) for parameter in weights]
    return {"finite": finite, "overflowed": scaler.update(), "scale": scaler.state_dict()["scale"]}


def test_an_overflow_of_one_process_is_one_of_all(tmp_path):
    first, second = run_in_two_processes(overflow_of_one_process, tmp_path)
    assert first == second == {"finite": [False, True], "overflowed": True, "scale": 2.0**15}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_fp16_it_changes_nothing(dtype):
    layer, weights = layer_and_weights()
    scaler = LossScaler(False)
    loss = layer(torch.randn(8, 4)).square().mean()
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
    scaler.unscale_(weights)
    assert not scaler.update()
