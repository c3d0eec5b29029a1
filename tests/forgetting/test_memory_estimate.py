"""An importance that does not fit into memory is refused with numbers before anything is measured."""

import pytest
import torch

from pipelines.errors import MachineError
from pipelines.forgetting import memory_estimate
from pipelines.forgetting.memory_estimate import MemoryNeed, diagonal_fisher, kronecker_factors, path_integral
from pipelines.forgetting.penalty import LoraPair
from pipelines.forgetting.strategies.ewc import Ewc, EwcSettings, FisherText
from pipelines.forgetting.strategies.si import Si, SiFiles, SiSettings
from tests.forgetting.tiny_lora import base, lora, rows, sgd

CPU = torch.device("cpu")


def free(monkeypatch, **bytes_by_device):
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: bytes_by_device[device.type])


def llama_7b_pairs(r=8):
    """LoRA on the seven matrices of each of the 32 layers of Llama 2 7B."""
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    with torch.device("meta"):
        return [
            LoraPair(f"{layer}", torch.nn.Parameter(torch.empty(out, r)), torch.nn.Parameter(torch.empty(r, inp)), 1.0)
            for layer in range(32)
            for out, inp in shapes
        ]


def test_kronecker_factors_of_a_7b_model_take_70_gb_per_text():
    need = kronecker_factors(llama_7b_pairs(), num_texts=2, is_measured=False)
    assert need.measurement / 1e9 == pytest.approx(70, abs=1)
    assert need.training == 2 * need.measurement and need.files == need.measurement
    assert kronecker_factors(llama_7b_pairs(), 2, is_measured=True).measurement == 0


def test_full_fine_tuning_needs_multiples_of_the_weights():
    weights = [torch.empty(10, 10, device="meta"), torch.empty(50, device="meta", dtype=torch.bfloat16)]
    fp32 = 4 * 150
    assert diagonal_fisher(weights, 1, is_measured=False) == MemoryNeed(2 * fp32, 4 * fp32, fp32)
    need = path_integral(weights, weights, 1, has_lora=False, is_measured=False)
    assert need == MemoryNeed(7 * fp32, 7 * fp32, fp32)
    need = path_integral(weights[1:], weights[:1], 1, has_lora=True, is_measured=False)
    assert need == MemoryNeed(7 * 400, 5 * 200, 0)


@pytest.mark.parametrize(
    ("device", "memory", "message"),
    [
        ("cpu", {"cpu": 4.9e9}, "ewc needs 5.0 GB of memory, 4.9 GB are free; use less"),
        ("cuda", {"cuda": 2.9e9, "cpu": 9e9}, "ewc needs 3.0 GB of GPU memory, 2.9 GB are free; use less"),
        ("cuda", {"cuda": 9e9, "cpu": 1.9e9}, "ewc needs 2.0 GB of main memory, 1.9 GB are free; use less"),
    ],
)
def test_each_memory_is_compared_with_what_is_free(monkeypatch, device, memory, message):
    free(monkeypatch, **memory)
    need = MemoryNeed(measurement=3_000_000_000, training=1_000_000_000, files=2_000_000_000)
    with pytest.raises(MachineError, match=message):
        need.check("ewc", "use less", torch.device(device))
    free(monkeypatch, cuda=3e9, cpu=5e9)
    need.check("ewc", "use less", torch.device(device))


def ewc(folder, **settings):
    return Ewc(EwcSettings(**settings), [FisherText(rows(3), folder / "fisher.safetensors", 1.0)], "a model", 0)


def si(folder):
    files = SiFiles(folder / "general.safetensors", folder / "output.safetensors")
    return Si(SiSettings(importance_steps=1), rows(8), files, "a model")


@pytest.mark.parametrize(
    ("build_model", "build_strategy", "message"),
    [
        (
            lora,
            lambda folder: ewc(folder, fisher="kronecker"),
            r"pipeline.forgetting.ewc: fisher: kronecker, with factors of 6 matrices, needs .* GB of memory, 0.0 GB are "
            r"free; write fisher: factored, or name fewer adapter.target_modules",
        ),
        (base, ewc, "pipeline.forgetting.ewc: ewc without an adapter needs .*; use an adapter, or replay"),
        (lora, si, "pipeline.forgetting.si, which trains the base weights temporarily, needs .*; use ewc, or name"),
        (base, si, "pipeline.forgetting.si, which trains the base weights temporarily, needs .*; use an adapter"),
    ],
    ids=["kronecker", "full ewc", "lora si", "full si"],
)
def test_a_strategy_is_refused_before_it_measures(tmp_path, monkeypatch, build_model, build_strategy, message):
    model, strategy = build_model(tmp_path / "m"), build_strategy(tmp_path)
    free(monkeypatch, cpu=1000)
    with pytest.raises(MachineError, match=message):
        strategy.setup(model, sgd(model))
    assert not list(tmp_path.glob("*.safetensors"))
    free(monkeypatch, cpu=1e9)
    strategy.setup(model, sgd(model))
    assert list(tmp_path.glob("*.safetensors"))


def test_the_factored_fisher_needs_no_check(tmp_path, monkeypatch):
    free(monkeypatch, cpu=0)
    model = lora(tmp_path / "m")
    ewc(tmp_path).setup(model, sgd(model))
