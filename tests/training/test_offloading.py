"""An optimizer in main memory takes the same steps, and resumes."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipelines.config.job import load_job
from pipelines.errors import ConfigError, MachineError
from pipelines.storage.run_folder import Run
from pipelines.training.checkpoint import SafetensorsCheckpoint
from pipelines.training.offloading import OffloadedOptimizer, check_training_memory, memory_of_training
from tests.jobs import LORA, run_training

OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
}


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def step(model, optimizer, seed):
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(model[0].weight.dtype)
    optimizer.zero_grad()
    model(inputs).float().square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_in_fp32_are_bitwise_those_of_the_optimizer(name):
    plain, offloaded = make_model(), make_model()
    optimizer = OPTIMIZERS[name](plain.parameters())
    other = OffloadedOptimizer(OPTIMIZERS[name](offloaded.parameters()), torch.float32)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in (optimizer, other)]
    for seed in range(4):
        step(plain, optimizer, seed)
        step(offloaded, other, seed)
        for schedule in schedules:
            schedule.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for one, two in zip(plain.parameters(), offloaded.parameters(), strict=True):
        assert torch.equal(one, two)


def test_half_precision_weights_are_the_rounded_fp32_copies():
    """Steps too small for bf16 are not lost: they add up in the copies."""
    model = make_model()
    optimizer = OffloadedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-4), torch.bfloat16)
    expected = [master.detach().clone() for master in optimizer.masters.tensors]
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
        for master, weight in zip(expected, model.parameters(), strict=True):
            master -= 1e-4 * weight.grad.float()
    for weight, master, value in zip(model.parameters(), optimizer.masters.tensors, expected, strict=True):
        torch.testing.assert_close(master, value)
        assert torch.equal(weight, master.bfloat16()) and master.grad is None


def test_a_checkpoint_restores_the_fp32_copies(tmp_path):
    def checkpoint():
        model = make_model()
        optimizer = OffloadedOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-4), torch.bfloat16)
        scheduler, coordinator = SimpleNamespace(state_dict=dict), SimpleNamespace(is_coordinator=lambda: True)
        return SafetensorsCheckpoint(coordinator, model, optimizer, scheduler, history={}, stateful=[optimizer.masters])

    one, other = checkpoint(), checkpoint()
    for seed in range(3):
        step(one.model, one.optimizer, seed)
    one.save(str(tmp_path / "latest.ckpt"), 3)
    other.load(str(tmp_path / "latest.ckpt"))
    for each in (one, other):
        step(each.model, each.optimizer, 9)
    for first, second in zip(one.optimizer.masters.tensors, other.optimizer.masters.tensors, strict=True):
        assert torch.equal(first, second)


def test_optimizers_of_other_packages_are_refused():
    class Lion(torch.optim.SGD):
        pass

    with pytest.raises(ConfigError, match="Lion is not one of torch's optimizers; write trainer.optimizer.type: adamw"):
        OffloadedOptimizer(Lion(make_model().parameters(), lr=0.1), torch.float32)


def test_fp16_is_refused():
    with pytest.raises(MachineError, match="computes in fp16, and it needs bf16; use an adapter"):
        OffloadedOptimizer(torch.optim.SGD(make_model().parameters(), lr=0.1), torch.float16)


def test_memory_estimate_and_the_edit_that_makes_it_fit():
    """8 billion weights in fp32 with AdamW: 16 bytes each; offloaded 4 on the GPU and 12 in main memory."""
    with torch.device("meta"):
        model = torch.nn.Linear(80_000, 100_000, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    assert memory_of_training(model, optimizer, offload=False) == (128e9, 0)
    assert memory_of_training(model, optimizer, offload=True) == (32e9, 96e9)
    check_training_memory(model, optimizer, offload=False, gpu=141e9, main=64e9)
    check_training_memory(model, optimizer, offload=True, gpu=80e9, main=120e9)
    with pytest.raises(MachineError) as caught:
        check_training_memory(model, optimizer, offload=False, gpu=80e9, main=120e9)
    assert str(caught.value) == (
        "training 8.00 billion weights in fp32 needs 128.0 GB for weights, gradients and the optimizer's states, of "
        "80.0 GB on the GPU; write pipeline.hardware.offload_optimizer: true (32.0 GB on the GPU and 96.0 GB of main "
        "memory), or use an adapter"
    )
    with pytest.raises(MachineError, match=r"needs 32.0 GB on the GPU and 96.0 GB of main memory .* use an adapter"):
        check_training_memory(model, optimizer, offload=True, gpu=80e9, main=64e9)


@pytest.mark.ludwig
def test_a_training_in_fp32_is_bitwise_the_same(make_job, tmp_path):
    def trained(name, **hardware):
        job, run, base = make_job(None, name=name, epochs=2, optimizer={"type": "adamw"}, learning_rate=0.003)
        config = json.loads((tmp_path / "job.yaml").read_text())
        config["pipeline"]["hardware"] = hardware
        (tmp_path / "job.yaml").write_text(json.dumps(config))
        run_training(load_job(tmp_path / "job.yaml"), Run(tmp_path / name), base)
        return load_file(run.path("model", "model.safetensors"))

    expected, weights = trained("plain"), trained("offloaded", offload_optimizer=True)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("adapter", "forgetting", "message"),
    [
        (LORA, "none", "is for a training without an adapter, which has few trained weights; remove it"),
        (None, "ewc", "cannot be combined with ewc, which acts on the weights of the GPU; use replay"),
    ],
)
def test_jobs_in_which_it_cannot_be_used(make_job, tmp_path, adapter, forgetting, message):
    make_job(adapter, forgetting=forgetting)
    config = json.loads((tmp_path / "job.yaml").read_text())
    config["pipeline"]["hardware"] = {"offload_optimizer": True}
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load_job(tmp_path / "job.yaml")
