import torch

from pipelines.modeling import deferred_scalars
from pipelines.modeling.deferred_scalars import DeferredScalar


def test_a_scalar_has_the_value_of_its_tensor():
    value = torch.tensor(0.1, requires_grad=True) * 3
    scalar = DeferredScalar(value)
    assert float(scalar) == float(scalar) == value.item()


def test_scalars_on_the_cpu_are_not_collected():
    scalar = DeferredScalar(torch.tensor(1.0))
    assert scalar not in deferred_scalars._unread


def test_a_scalar_that_nobody_keeps_is_forgotten():
    DeferredScalar(torch.zeros((), device="meta"))
    assert not deferred_scalars._unread
