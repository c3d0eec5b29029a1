"""Every optimizer that `check` accepts can be created and uses its learning rate, or is an error of one line."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from pipelines.config.ludwig_unsupported import UNSUPPORTED_VALUES
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError, MachineError
from pipelines.modeling.adapters import check_freeze_regex
from pipelines.training.checkpoint import SafetensorsCheckpoint
from pipelines.training.optimizers import (
    create_optimizer,
    load_optimizer_state,
    optimizer_class_and_kwargs,
    use_fused_step,
)

REFUSED = {value for key, value in UNSUPPORTED_VALUES if key == "trainer.optimizer.type"}
NAMES = sorted(ludwig_fields()["trainer"]["fields"]["optimizer"]["variants"].keys() - REFUSED)


REQUIRED = {
    "adafactor": {"relative_step": False, "scale_parameter": False, "lr": 0.5},
    "sgd_8bit": {"momentum": 0.9},
}
"""Settings without which an optimizer does not run: the check requires them, or `ludwig_config` writes them."""
BITSANDBYTES = [name for name in NAMES if "8bit" in name or name.startswith(("lamb", "lars", "lion", "paged_"))]
pytestmark = [pytest.mark.ludwig, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]


def config_of(name, **settings):
    from ludwig.schema.optimizers import optimizer_registry

    return optimizer_registry[name][1].model_validate({"type": name, **REQUIRED.get(name, {}), **settings})


class TiedModel(torch.nn.Module):
    """An embedding that the output layer shares, a frozen matrix, and trained ones above and below 4096 entries."""

    def __init__(self, full=True, loraplus_lr_ratio=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(300, 16)
        self.head = torch.nn.Linear(16, 300, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = torch.nn.Linear(16, 16).requires_grad_(False)
        self.lora_A = torch.nn.Linear(16, 320, bias=False)
        self.lora_B = torch.nn.Linear(320, 16)
        self.embedding.weight.requires_grad_(full)
        self.config_obj = SimpleNamespace(adapter=SimpleNamespace(loraplus_lr_ratio=loraplus_lr_ratio))

    def take_steps(self, optimizer, *numbers):
        for number in numbers:
            torch.manual_seed(number)
            states = self.embedding(torch.randint(0, 300, (8,)))
            logits = self.head(states + self.lora_B(self.lora_A(self.frozen(states))))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.randint(0, 300, (8,))).backward()
            optimizer.step()

    def trained(self):
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}


def checkpoint_of(model, optimizer):
    coordinator = SimpleNamespace(is_coordinator=lambda: True)
    return SafetensorsCheckpoint(coordinator, model, optimizer, SimpleNamespace(state_dict=dict), history={})


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_steps_and_resumes_bitwise(name, full, tmp_path):
    uninterrupted, interrupted, resumed = (TiedModel(full) for _ in range(3))
    optimizers = [create_optimizer(model, config_of(name), 0.01) for model in (uninterrupted, interrupted, resumed)]
    before = {key: weight.clone() for key, weight in uninterrupted.trained().items()}
    uninterrupted.take_steps(optimizers[0], 1, 2, 3, 4)
    assert not any(torch.equal(weight, before[key]) for key, weight in uninterrupted.trained().items())
    assert uninterrupted.head.weight is uninterrupted.embedding.weight
    assert uninterrupted.embedding.weight.requires_grad == full

    interrupted.take_steps(optimizers[1], 1, 2)
    checkpoint_of(interrupted, optimizers[1]).save(str(tmp_path / "latest.ckpt"), 2)
    checkpoint_of(resumed, optimizers[2]).load(str(tmp_path / "latest.ckpt"))
    resumed.take_steps(optimizers[2], 3, 4)
    for key, weight in uninterrupted.trained().items():
        assert torch.equal(weight, resumed.trained()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_uses_the_learning_rate(name):
    model = TiedModel()
    optimizer = create_optimizer(model, config_of(name), 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01]
    optimizer.param_groups[0]["lr"] = 0.0
    before = {key: weight.clone() for key, weight in model.trained().items()}
    model.take_steps(optimizer, 1)
    assert all(torch.equal(weight, before[key]) for key, weight in model.trained().items())


@pytest.mark.parametrize("name", NAMES)
def test_loraplus_gives_the_second_matrices_another_rate(name):
    groups = create_optimizer(TiedModel(loraplus_lr_ratio=4.0), config_of(name), 0.01).param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.04, 0.01]


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_the_arguments_are_those_of_bitsandbytes(name):
    """Without a step, so on every machine: an argument that bitsandbytes removes would be dropped in silence."""
    from ludwig.modules.optimization_modules import get_optimizer_class_and_kwargs

    optimizer_class, passed = get_optimizer_class_and_kwargs(config_of(name), 0.01)
    assert optimizer_class.__module__.startswith("bitsandbytes")
    _, accepted = optimizer_class_and_kwargs(config_of(name), 0.01)
    assert passed.keys() - accepted.keys() <= {"block_wise", "percentile_clipping"}


def test_8_bit_states_are_saved_as_such_except_for_those_of_embeddings(tmp_path):
    model = TiedModel()
    optimizer = create_optimizer(model, config_of("adamw_8bit"), 0.01)
    model.take_steps(optimizer, 1)
    path = tmp_path / "latest.ckpt"
    checkpoint_of(model, optimizer).save(str(path), 1)
    names = [key for key, _ in model.named_parameters()]
    states = {
        names[int(name.split("/")[1])]: tensor.dtype
        for name, tensor in load_file(path).items()
        if name.startswith("optimizer/") and name.endswith("/state2")
    }
    assert states == {
        "embedding.weight": torch.float32,  # as large as lora_A.weight
        "lora_A.weight": torch.uint8,
        "lora_B.weight": torch.uint8,
        "lora_B.bias": torch.float32,
    }
    assert not optimizer.mng.pid2config


def test_a_device_without_kernels_is_an_error_of_one_line():
    with pytest.raises(MachineError) as caught:
        create_optimizer(TiedModel().to("meta"), config_of("lion"), 0.01)
    assert str(caught.value) == (
        "trainer.optimizer.type: lion: bitsandbytes has no optimizers for the device meta; write type: adamw"
    )


class PagedOptimizer(torch.optim.SGD):
    """The part of bitsandbytes' paged optimizers that loads a state."""

    is_paged = True

    def load_state_dict(self, state, move_to_device=True):
        assert not move_to_device
        super().load_state_dict(state)

    def get_state_buffer(self, parameter, dtype):
        buffer = torch.zeros_like(parameter, dtype=dtype)
        buffer.is_paged = True
        return buffer


def test_the_states_of_a_paged_optimizer_are_paged_after_a_load():
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = PagedOptimizer([parameter], lr=0.1)
    state = {"step": 3, "state1": torch.ones(2, 3), "unorm_vec": torch.ones(1)}
    load_optimizer_state(optimizer, {"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
    assert optimizer.state[parameter]["state1"].is_paged and optimizer.state[parameter]["state1"].eq(1).all()
    assert not hasattr(optimizer.state[parameter]["unorm_vec"], "is_paged")


@pytest.mark.parametrize("name", [name for name in BITSANDBYTES if name.startswith("paged_")])
def test_paged_states_on_a_gpu(name, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: on a CPU bitsandbytes does not page")
    models = [torch.nn.Sequential(torch.nn.Linear(400, 400)).cuda() for _ in range(2)]
    optimizers = [create_optimizer(model, config_of(name), 0.01) for model in models]
    for parameter in models[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    checkpoint_of(models[0], optimizers[0]).save(str(tmp_path / "latest.ckpt"), 1)
    checkpoint_of(models[1], optimizers[1]).load(str(tmp_path / "latest.ckpt"))
    expected, loaded = (
        optimizer.state[model[0].weight]["state1"] for model, optimizer in zip(models, optimizers, strict=True)
    )
    assert expected.is_paged and loaded.is_paged and torch.equal(expected, loaded)


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


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_fused_step_equals_the_default(name, monkeypatch):
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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BITSANDBYTES])
def test_torchs_optimizers_accept_weights_on_cuda(name):
    """Fake tensors have the device and no values: torch's own checks run without a GPU, and so do most steps."""
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.zeros(4, 3, device="cuda"))
        optimizer_class, arguments = optimizer_class_and_kwargs(config_of(name), 0.01)
        optimizer = optimizer_class([weight], **arguments)
        use_fused_step(optimizer)
        for _ in range(2):
            weight.grad = torch.ones(4, 3, device="cuda")
            try:
                optimizer.step()
            except RuntimeError as error:
                if "Found no NVIDIA driver" not in str(error):
                    raise
                pytest.skip("this step launches a kernel")


def test_on_a_cpu_the_step_is_not_fused():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    use_fused_step(optimizer)
    assert not optimizer.param_groups[0]["fused"]
