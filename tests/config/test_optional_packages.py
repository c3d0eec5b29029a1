"""What needs a package that is not there is said before a run begins."""

import pytest

from pipelines.config import optional_packages as extras
from pipelines.config.job import load_job
from pipelines.config.ludwig import schema
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD


@pytest.fixture
def job(tmp_path):
    def job(*overrides):
        (tmp_path / "job.yaml").write_text(GOOD, encoding="utf-8")
        return load_job(tmp_path / "job.yaml", overrides)

    return job


def test_without_bitsandbytes_its_keys_are_named(job, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        extras.check_extras(job("quantization={bits: 4}", "trainer.optimizer={type: paged_adamw}"))
    quantization, optimizer = caught.value.problems
    assert str(quantization).startswith(
        "override quantization={bits: 4}: quantization needs the package bitsandbytes, which is not installed"
    )
    assert optimizer.message.endswith("pip install bitsandbytes, or write adamw")
    extras.check_extras(job("quantization=null", "trainer.optimizer={type: adamw}"))


def test_with_it_nothing_is_said(job, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    extras.check_extras(job("quantization={bits: 4}"))


@pytest.mark.ludwig
def test_the_optimisers_named_are_those_that_ludwig_has_from_bitsandbytes(job, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from ludwig.schema.optimizers import optimizer_registry

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for name in schema()["trainer"]["fields"]["optimizer"]["variants"]:
        if name in ("lbfgs", "schedule_free_adamw"):
            continue
        try:
            extras.check_extras(job(f"trainer.optimizer={{type: {name}}}"))
            asked = False
        except ConfigError:
            asked = True
        assert asked == optimizer_registry[name][0].__module__.startswith("bitsandbytes"), name
