"""The metric of every optimizer: a proximal penalty in it has the minimum of loss and penalty as its fixed point."""

import pytest
import torch

from pipelines.forgetting.optimizer_metric import divided_by_metric
from pipelines.forgetting.penalty import ProximalQuadraticPenalty
from pipelines.forgetting.requirements import WITHOUT_METRIC

SGD, RMSprop, Adagrad = torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad
CASES = {
    "sgd": (SGD, {"lr": 0.01}),
    "momentum": (SGD, {"lr": 0.002, "momentum": 0.9}),
    "nesterov": (SGD, {"lr": 0.002, "momentum": 0.9, "nesterov": True}),
    "dampening": (SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "amsgrad": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.0}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "rmsprop": (RMSprop, {"lr": 0.002}),
    "rmsprop with momentum": (RMSprop, {"lr": 0.0005, "momentum": 0.9}),
    "centered rmsprop": (RMSprop, {"lr": 0.002, "centered": True}),
    "adagrad": (Adagrad, {"lr": 0.3}),
    "adagrad with decay": (Adagrad, {"lr": 0.3, "lr_decay": 1e-3}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
}
BITSANDBYTES = {
    "Adam8bit": {"lr": 0.01},
    "AdamW8bit": {"lr": 0.01, "weight_decay": 0.0},
    "PagedAdamW": {"lr": 0.01, "weight_decay": 0.0},
    "SGD8bit": {"lr": 0.002, "momentum": 0.9},
    "RMSprop8bit": {"lr": 0.002},
    "Adagrad8bit": {"lr": 0.3},
}


def fixed_point(optimizer_class, options, num_entries=1, steps=4000):
    """The weights after training on ½a(θ − b)² + ½λF(θ − θ₀)² from θ₀ = 0, with a = 2, b = 3, λ = 4 and F = 0.7."""
    model = torch.nn.Module()
    model.theta = torch.nn.Parameter(torch.zeros(num_entries))
    optimizer = optimizer_class(model.parameters(), **options)
    penalty = ProximalQuadraticPenalty(model, optimizer, 4.0, {"theta": torch.full((num_entries,), 0.7)})
    for _ in range(steps):
        model.theta.grad = 2.0 * (model.theta.detach() - 3.0)
        optimizer.step()
        penalty.after_step()
    return model.theta.detach()


MINIMUM = 2.0 * 3.0 / (2.0 + 4.0 * 0.7)


@pytest.mark.parametrize("name", CASES)
def test_the_fixed_point_is_the_minimum_of_loss_and_penalty(name):
    assert float(fixed_point(*CASES[name])) == pytest.approx(MINIMUM, rel=0.03)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_the_fixed_point_with_8_bit_states(name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # 4096 entries: smaller tensors have fp32 states.
    theta = fixed_point(getattr(bitsandbytes.optim, name), BITSANDBYTES[name], num_entries=4096, steps=1500)
    assert float(theta.mean()) == pytest.approx(MINIMUM, rel=0.05)


def test_a_parameter_without_a_gradient_has_metric_1():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    assert divided_by_metric(optimizer, parameter, optimizer.param_groups[0], 0.5).tolist() == [0.5, 0.5]


def test_an_optimizer_without_a_diagonal_metric_is_an_error():
    class Muon(torch.optim.SGD):
        pass

    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Muon([parameter])
    with pytest.raises(TypeError, match="Muon has no diagonal metric"):
        divided_by_metric(optimizer, parameter, optimizer.param_groups[0], 0.5)


@pytest.mark.ludwig
def test_every_accepted_optimizer_has_a_metric_or_is_refused():
    from ludwig.schema.optimizers import optimizer_registry

    from pipelines.config.ludwig_unsupported import UNSUPPORTED_VALUES
    from pipelines.forgetting.optimizer_metric import _METRICS

    refused = {value for key, value in UNSUPPORTED_VALUES if key == "trainer.optimizer.type"} | WITHOUT_METRIC
    for name, (optimizer_class, _) in optimizer_registry.items():
        if name not in refused:
            kernel = name.split("_")[-2 if name.endswith("8bit") else -1].replace("adamw", "adam")
            kernel = "momentum" if kernel == "sgd" else kernel
            is_from_bitsandbytes = optimizer_class.__module__.startswith("bitsandbytes")
            assert (kernel if is_from_bitsandbytes else optimizer_class.__name__) in _METRICS, name
