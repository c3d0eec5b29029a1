"""Every optimizer that `check` accepts can be created and uses its learning rate, or is an error of one line."""

import pytest
import torch

from pipelines.config.ludwig_unsupported import UNSUPPORTED_VALUES
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError, MachineError
from pipelines.modeling.adapters import check_freeze_regex

pytestmark = pytest.mark.ludwig

REFUSED = {value for key, value in UNSUPPORTED_VALUES if key == "trainer.optimizer.type"}
NAMES = sorted(ludwig_fields()["trainer"]["fields"]["optimizer"]["variants"].keys() - REFUSED)


def config_of(name, **settings):
    from ludwig.schema.optimizers import optimizer_registry

    return optimizer_registry[name][1].model_validate({"type": name, **settings})


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_is_created_and_uses_the_learning_rate(name):
    from ludwig.modules.optimization_modules import create_optimizer

    from pipelines.training.ludwig_registry import register
    from pipelines.training.optimizers import check_optimizer

    register()
    settings = {"relative_step": False, "scale_parameter": False, "lr": 0.5} if name == "adafactor" else {}
    config = config_of(name, **settings)
    if (config.is_8bit or config.is_paged) and not torch.cuda.is_available():
        with pytest.raises(MachineError, match=f"trainer.optimizer.type: {name} needs a GPU; use adamw"):
            check_optimizer(config)
        return
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4)
    optimizer = create_optimizer(layer, config, 0.01)

    def max_change():
        before = layer.weight.detach().clone()
        layer(torch.ones(2, 8)).pow(2).sum().backward()
        optimizer.step()
        return float((layer.weight.detach() - before).abs().max())

    assert [group["lr"] for group in optimizer.param_groups] == [0.01]
    assert max_change() > 0
    optimizer.param_groups[0]["lr"] = 0.0
    assert max_change() == 0


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("layers.9", "matches no weight of the model; the trained weights are named like 1.weight"),
        (".", "matches all 2 trained weights, so nothing would be trained"),
        ("^0", "matches only weights that are not trained"),
    ],
)
def test_layers_to_freeze_must_match_some_trained_weights_but_not_all(regex, message):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ConfigError) as caught:
        check_freeze_regex(model, regex)
    assert message in str(caught.value)
    check_freeze_regex(model, "bias")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_a_fused_step_equals_the_default(name, monkeypatch):
    from pipelines.training.optimizers import use_fused_step

    monkeypatch.setattr("pipelines.training.optimizers.FUSED_DEVICES", {"cpu"})
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight, frozen = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
        optimizer = getattr(torch.optim, name)([weight, frozen], lr=0.1)
        if fused:
            use_fused_step(optimizer)
            assert optimizer.param_groups[0]["fused"]
        for _ in range(3):
            weight.grad = weight.detach().square()
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_on_a_cpu_the_step_is_not_fused():
    from pipelines.training.optimizers import use_fused_step

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    use_fused_step(optimizer)
    assert not optimizer.param_groups[0]["fused"]
