"""A GPU that torch cannot use, and hardware that the config requires and the machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.config.hardware import HardwareSettings
from pipelines.errors import ModelError
from pipelines.modeling import gpu_driver, hardware, loading
from pipelines.planning import target_hardware
from tests.checks.labeled_jobs import GOOD_ROWS, write_job
from tests.inference.tiny_run import make_run

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040); torch needs a newer driver"


@pytest.fixture
def unusable_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists a GPU, and whose torch cannot use it."""
    version_file = tmp_path / "version"
    version_file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    monkeypatch.setattr(gpu_driver, "DRIVER_VERSION_FILE", version_file)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "cuda_error", lambda: OLD_DRIVER)
    monkeypatch.setattr(target_hardware, "_nvidia_gpu", lambda: target_hardware.GPUS["t4"])


def invoke(command: str, path: str | Path, *overrides: str) -> Result:
    return CliRunner().invoke(main, [command, str(path), *overrides])


def test_check_warns_once_of_a_gpu_that_cannot_be_used(tmp_path: Path, unusable_gpu: None) -> None:
    result = invoke("check", write_job(tmp_path, GOOD_ROWS))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: the GPU is not used") == 1
    assert f"warning: the GPU is not used: {OLD_DRIVER}\n" in result.stderr


@pytest.mark.parametrize("hidden", [True, False])
def test_without_the_gpu_there_is_nothing_to_warn_of(
    tmp_path: Path, unusable_gpu: None, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = invoke("check", write_job(tmp_path, GOOD_ROWS), *([] if hidden else ["pipeline.hardware.device=cpu"]))
    assert result.exit_code == 0 and "GPU" not in result.stderr


def test_a_required_gpu_that_cannot_be_used_is_an_error_at_its_line(tmp_path: Path, unusable_gpu: None) -> None:
    path = write_job(tmp_path, GOOD_ROWS)
    config = yaml.safe_load(path.read_text())
    config["pipeline"]["hardware"] = {"device": "cuda"}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    line = 1 + path.read_text().splitlines().index("    device: cuda")
    result = invoke("check", path)
    assert result.exit_code != 0
    expected = f"{path.name}:{line}: pipeline.hardware.device: cuda: {OLD_DRIVER}; use device: auto"
    assert expected in result.stderr and "OK" not in result.stdout and "Traceback" not in result.output


def test_a_device_that_the_machine_lacks_is_an_error(tmp_path: Path) -> None:
    if torch.xpu.is_available():
        pytest.skip("this machine has an XPU")
    result = invoke("check", write_job(tmp_path, GOOD_ROWS), "pipeline.hardware.device=xpu")
    assert result.exit_code != 0 and "finds no xpu device; use device: auto" in result.stderr


@pytest.mark.model
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "job.yaml", "--name", "x"),
        ("plan", "job.yaml", "--calibrate"),
        ("predict", "run", "odd.jsonl", "--task", "odd"),
        ("predict", "run", "odd.jsonl", "--task", "odd", "--base"),
        ("chat", "run"),
        ("serve", "run", "--port", "0"),
        ("compare", "run", "./base", "--prompts", "odd.jsonl", "--task", "odd"),
        ("compare", "./base", "./base", "--prompts", "raw.jsonl", "--raw"),
    ],
    ids=" ".join,
)
def test_what_loads_a_model_warns_once_before(
    tmp_path: Path,
    unusable_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: tuple[str, ...],
) -> None:
    def load(*_: object, **__: object) -> None:
        seen.append(list(caplog.messages))
        raise ModelError("no model here")

    seen: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    write_job(tmp_path, GOOD_ROWS)
    Path("odd.jsonl").write_text('{"q": "is 3 odd", "a": "yes"}\n')
    Path("raw.jsonl").write_text('{"prompt": "is 3 odd"}\n')
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(hardware, "_current", None)
    monkeypatch.setattr(hardware, "_given_warnings", set())
    result = invoke(*arguments)
    assert "no model here" in result.stderr and result.exit_code != 0
    assert seen == [[f"the GPU is not used: {OLD_DRIVER}"]]
    assert caplog.messages == seen[0] and OLD_DRIVER not in result.stderr


@pytest.mark.model
def test_hardware_that_a_run_requires_is_an_error_at_its_line(tmp_path: Path, unusable_gpu: None) -> None:
    config = make_run(tmp_path, pipeline={"hardware": {"device": "cuda"}}).path("config.yaml")
    for arguments in (("chat", "run"), ("serve", "run", "--port", "0")):
        result = invoke(arguments[0], tmp_path / "run", *arguments[2:])
        assert f"{config.name}:1: pipeline.hardware.device: cuda: {OLD_DRIVER}" in result.stderr


def test_a_gpu_that_cannot_be_used_is_not_planned_with(tmp_path: Path, unusable_gpu: None) -> None:
    assert target_hardware.find_hardware(None, HardwareSettings()).device == "cpu"
    assert target_hardware.find_hardware("t4", HardwareSettings()).device == "cuda"
