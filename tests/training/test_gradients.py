"""Gradients are summed over the processes once; a non-finite gradient is detected."""

import dataclasses
import math

import pytest
import torch

from pipelines.modeling.hardware import rng_state, set_rng_state
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.gradients import all_finite, all_reduce_gradients, copy_gradients, gradient_norm


@dataclasses.dataclass(frozen=True)
class TwoEqualProcesses(ProcessGroup):
    """A group of two processes that hold the same values, so that each sum is twice the value."""

    world_size: int = 2

    def all_reduce_sum(self, tensors):
        for tensor in tensors:
            tensor.mul_(2)


def make_weights(*gradients):
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else torch.tensor(gradient)
    return weights


def test_gradients_and_extra_tensors_are_summed():
    weights, loss = make_weights([1.0, 2.0], None), torch.tensor(3.0)
    all_reduce_gradients(TwoEqualProcesses(), weights, loss)
    assert [weight.grad.tolist() for weight in weights] == [[2.0, 4.0], [0.0, 0.0]] and loss == 6


def test_a_part_that_is_already_reduced_is_not_summed_again():
    weights = make_weights([1.0, 2.0])
    all_reduce_gradients(TwoEqualProcesses(), weights, already_reduced=[torch.tensor([0.5, 2.0])])
    assert weights[0].grad.tolist() == [1.5, 2.0]


def test_a_single_process_keeps_its_gradients():
    weights = make_weights([1.0, 2.0], None)
    all_reduce_gradients(ProcessGroup(), weights)
    assert weights[0].grad.tolist() == [1.0, 2.0] and weights[1].grad is None


def test_copies_are_independent_and_zero_without_a_gradient():
    weights = make_weights([1.0, 2.0], None)
    copies = copy_gradients(weights)
    weights[0].grad.zero_()
    assert [copy.tolist() for copy in copies] == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize(("value", "is_finite"), [(1.0, True), (float("nan"), False), (float("inf"), False)])
def test_a_non_finite_gradient_is_detected(value, is_finite):
    assert math.isfinite(gradient_norm(make_weights([1.0, 1.0], [0.0, value], None))) is is_finite
    tensors = [torch.ones(2), torch.arange(3), torch.tensor([0.0, -value]), torch.zeros(0)]
    assert all_finite(tensors) is is_finite


def test_large_finite_values_are_finite():
    assert all_finite([torch.full((3,), 3e38), torch.full((3,), 3e38, dtype=torch.bfloat16)]) and all_finite([])


def test_the_random_number_generators_continue_from_a_state():
    state = rng_state()
    first = torch.rand(3)
    set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
