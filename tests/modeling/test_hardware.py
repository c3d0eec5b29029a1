"""The choice of device and precision on machines that are described by replaced functions of torch."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.config.hardware import HardwareSettings
from pipelines.errors import MachineError
from pipelines.modeling import gpu_driver, hardware
from pipelines.modeling.hardware import configure_hardware, current_hardware, detect_hardware

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."


@pytest.fixture(autouse=True)
def own_policy(monkeypatch):
    monkeypatch.setattr(hardware, "_current", None)
    monkeypatch.setattr(hardware, "_fp32_reason", None)
    monkeypatch.setattr(hardware, "_given_warnings", set())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware.cuda_error.cache_clear()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    hardware.cuda_error.cache_clear()


def machine(monkeypatch, name=None, capability=(9, 0), arch_list=("sm_75", "sm_80", "sm_90"), mps=False, driver=True):
    """A machine with the CUDA GPU `name`, or without one."""

    warned = []

    def is_available():
        if name == "old driver" and not warned:  # torch warns once
            warned.append(True)
            warnings.warn(OLD_DRIVER, UserWarning, stacklevel=2)
        return name not in (None, "old driver")

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(arch_list))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capability >= (8, 0)
    )
    properties = SimpleNamespace(name=name, major=capability[0], minor=capability[1], total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    existing, missing = Path(__file__), Path(__file__).with_name("missing")
    monkeypatch.setattr(gpu_driver, "DRIVER_VERSION_FILE", existing if name and driver else missing)


@pytest.mark.parametrize(
    ("gpu", "device", "dtype"),
    [
        ({"name": "NVIDIA H100", "capability": (9, 0)}, "cuda", torch.bfloat16),
        ({"name": "NVIDIA A10", "capability": (8, 6)}, "cuda", torch.bfloat16),
        ({"name": "Tesla T4", "capability": (7, 5)}, "cuda", torch.float16),
        ({"mps": True}, "mps", torch.float32),
        ({}, "cpu", torch.float32),
    ],
)
def test_the_machine_decides_device_and_dtype(gpu, device, dtype, monkeypatch):
    machine(monkeypatch, **gpu)
    chosen = current_hardware()
    assert (chosen.device.type, chosen.dtype, chosen.warning) == (device, dtype, None)
    assert chosen.scales_loss == (dtype == torch.float16)
    description = chosen.describe()
    assert description["gpu"] == gpu.get("name") and description["reason"] in chosen.summary()


@pytest.mark.parametrize(
    ("gpu", "cause"),
    [
        ({"name": "old driver"}, "The NVIDIA driver on your system is too old (found version 11040)"),
        (
            {"name": "Tesla V100", "capability": (7, 0)},
            "Tesla V100 has compute capability 7.0; torch .* has kernels from 7.5 on",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_a_warning_or_an_error(gpu, cause, monkeypatch):
    machine(monkeypatch, **gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    chosen = detect_hardware(HardwareSettings())
    assert chosen.device.type == "cpu"
    assert chosen.warning is not None and chosen.warning.startswith("the GPU is not used: ")
    with pytest.raises(MachineError, match=cause.replace("(", r"\(").replace(")", r"\)")) as error:
        detect_hardware(HardwareSettings(device="cuda"))
    assert str(error.value).startswith("pipeline.hardware.device: cuda: ") and "\n" not in str(error.value)
    assert detect_hardware(HardwareSettings(device="cpu")).warning is None


@pytest.mark.parametrize(("gpu", "precision"), [("NVIDIA H100", "high"), (None, "highest")])
def test_products_in_fp32_are_in_tf32_on_a_gpu_only(gpu, precision, monkeypatch):
    torch.set_float32_matmul_precision("highest")
    machine(monkeypatch, gpu)
    configure_hardware(HardwareSettings())
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("chosen", [None, "max_split_size_mb:64"])
def test_memory_is_kept_from_fragmenting_unless_the_user_decides(chosen):
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    environment |= {"PYTORCH_ALLOC_CONF": chosen} if chosen else {}
    program = "import os, pipelines.modeling.hardware; print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ("None" if chosen else "expandable_segments:True")


def test_the_config_overrides_the_choice(monkeypatch):
    machine(monkeypatch, "NVIDIA H100")
    chosen = configure_hardware(HardwareSettings(device="cpu", dtype="bf16", attention="dense"))
    assert (chosen.device.type, chosen.dtype, chosen.attention) == ("cpu", torch.bfloat16, "dense")
    assert current_hardware() is chosen


def test_emulated_bf16_is_refused(monkeypatch):
    machine(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(MachineError, match="dtype: bf16: this GPU only emulates bf16; use dtype: fp16 or auto"):
        detect_hardware(HardwareSettings(dtype="bf16"))


def test_a_gpu_that_cannot_be_used_is_warned_of_once(monkeypatch, caplog):
    machine(monkeypatch, "old driver")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    warning = current_hardware().warning
    configure_hardware(HardwareSettings(device="cpu"))
    configure_hardware(HardwareSettings())
    assert warning is not None and caplog.messages == [warning]


def test_a_device_that_is_missing_is_an_error(monkeypatch):
    machine(monkeypatch)
    with pytest.raises(MachineError, match="device: mps: torch .* finds no mps device; use device: auto"):
        detect_hardware(HardwareSettings(device="mps"))


@pytest.mark.parametrize("capability", [(9, 0), (8, 9), (13, 0)])
def test_a_gpu_runs_kernels_of_its_generation_and_later_ones_run_ptx(capability, monkeypatch):
    machine(monkeypatch, "GPU", capability, ("sm_80", "sm_90", "sm_120", "compute_120"))
    assert hardware.cuda_error() is None


def test_fp32_after_an_overflow_stays_for_the_process(monkeypatch):
    machine(monkeypatch, "Tesla T4", (7, 5))
    assert configure_hardware(HardwareSettings()).dtype == torch.float16
    hardware.use_fp32("X overflows in fp16")
    assert configure_hardware(HardwareSettings()).dtype == current_hardware().dtype == torch.float32
    configure_hardware(HardwareSettings(dtype="fp16"))
    with pytest.raises(MachineError, match="dtype: fp16: X overflows in fp16; use dtype: auto or fp32"):
        hardware.use_fp32("X overflows in fp16")


def test_models_are_kept_in_main_memory_for_a_block(monkeypatch):
    machine(monkeypatch, "NVIDIA H100")
    before = configure_hardware(HardwareSettings())
    with pytest.raises(KeyError), hardware.main_memory():
        assert (current_hardware().device.type, current_hardware().dtype) == ("cpu", before.dtype)
        raise KeyError
    assert current_hardware() is before and before.device.type == "cuda"


def test_main_memory_changes_nothing_on_a_cpu(monkeypatch):
    machine(monkeypatch)
    before = configure_hardware(HardwareSettings())
    with hardware.main_memory():
        assert current_hardware() is before


def test_no_other_module_asks_torch_for_the_device():
    root = Path(hardware.__file__).parents[1]
    words = ("torch.cuda.is_available", "is_bf16_supported", "mps.is_available")
    files = [file for file in root.rglob("*.py") if any(word in file.read_text(encoding="utf-8") for word in words)]
    # The engine that checks exports runs in a process of its own, without this project's modules.
    engine = root / "exporting" / "engines" / "transformers_engine.py"
    assert set(files) == {Path(hardware.__file__), engine}


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_of_a_process_is_in_bytes(system, unit, monkeypatch):
    machine(monkeypatch)
    monkeypatch.setattr(hardware.sys, "platform", system)
    monkeypatch.setattr(hardware.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    assert hardware.peak_memory() == 7 * unit


def test_peak_memory_of_a_gpu_is_reset(monkeypatch):
    machine(monkeypatch, "NVIDIA H100")
    peak = {0: 5}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[device.index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update({device.index: 2}))
    assert hardware.peak_memory() == 5
    hardware.reset_peak_memory()
    assert hardware.peak_memory() == 2


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_torch_counts_the_memory_of_every_kind_of_gpu_alike(device):
    statistics = hardware.memory_statistics(torch.device(device))
    used = ["mem_get_info", "memory_reserved", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"]
    assert [name for name in [*used, "current_device"] if not callable(getattr(statistics, name, None))] == []
    assert hardware.memory_statistics(torch.device("cpu")) is hardware.memory_statistics(torch.device("mps")) is None


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_random_states_belong_to_the_type_of_device(monkeypatch, device):
    """A checkpoint of one machine can be resumed on another."""
    module, states = torch.get_device_module(device), []
    monkeypatch.setattr(module, "get_rng_state", lambda: torch.ones(3))
    monkeypatch.setattr(module, "set_rng_state", states.append)
    monkeypatch.setattr(hardware, "_current", hardware.Hardware(torch.device(device), torch.float32, None, ""))
    saved = hardware.rng_state()
    assert saved.keys() == {"cpu", device}
    hardware.set_rng_state(saved)
    assert len(states) == 1 and torch.equal(states[0], saved[device])
    monkeypatch.setattr(hardware, "_current", hardware.Hardware(torch.device("cpu"), torch.float32, None, ""))
    hardware.set_rng_state(saved)
    assert len(states) == 1
    hardware.set_rng_state(hardware.rng_state())
