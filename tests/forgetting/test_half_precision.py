"""Every strategy trains in bf16 and fp16 as it does in fp32."""

import contextlib
import json
import math
import shutil

import pytest

from pipelines.storage.run_folder import Run
from tests.emulated_precision import DTYPES, emulated_precision
from tests.forgetting.continual_jobs import run_second_job, write_rows, write_second_job
from tests.jobs import LORA, run, run_training
from tests.tiny import make_model

pytestmark = pytest.mark.ludwig

STRATEGIES = {
    "none": {"strategy": "none"},
    "ewc": {"strategy": "ewc", "ewc": {"weight": 10.0}},
    "kronecker": {"strategy": "ewc", "ewc": {"weight": 10.0, "fisher": "kronecker"}},
    "si": {"strategy": "si", "si": {"weight": 10.0, "importance_steps": 4}},
    "l2sp": {"strategy": "l2sp", "l2sp": {"weight": 1.0}},
    "replay": {"strategy": "replay", "replay": {"fraction": 0.3}},
    "distill": {"strategy": "distill", "distill": {"apply_to": "both", "fraction": 0.3}},
    "teacher": {"strategy": "distill", "distill": {"apply_to": "task", "teacher": "./teacher"}},
    "replay+distill": {"strategy": "replay+distill", "replay": {"fraction": 0.3}},
    "interpolate": {"strategy": "interpolate"},
}
CASES = [
    (name, adapter) for name in STRATEGIES for adapter in ("lora", "full") if (name, adapter) != ("kronecker", "full")
]


@pytest.fixture
def general_rows(tmp_path, monkeypatch):
    """A dozen short rows in place of the bundled files, and a cache of the test's own."""
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    texts = [f"the inn at nine {n} in a net" for n in range(12)]
    for name, column in (("passages", "text"), ("instructions", "instruction")):
        write_rows(tmp_path / "bundled" / "general" / f"{name}.jsonl", [{column: text} for text in texts])
    monkeypatch.setattr("pipelines.forgetting.context.bundled_file", lambda name: tmp_path / "bundled" / name)


def history(run_folder):
    return json.loads(run_folder.path("model", "training.json").read_text())


def numbers(value):
    """The numbers in a JSON value, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def assert_close(actual, expected, key, rel=0.1):
    for entry, reference in zip(actual.get(key, []), expected.get(key, []), strict=True):
        assert all(map(math.isfinite, numbers(entry)))
        assert numbers(entry) == pytest.approx(numbers(reference), rel=rel, abs=0.03), key


@pytest.mark.parametrize(("strategy", "adapter"), CASES)
def test_losses_are_those_of_fp32(make_job, general_rows, tmp_path, strategy, adapter):
    make_model(tmp_path / "teacher", seed=5)
    settings = {"forgetting": STRATEGIES[strategy], "optimizer": {"type": "adamw"}, "learning_rate": 0.002}
    job, full, base = make_job(LORA if adapter == "lora" else None, **settings)
    run_training(job, full, base)
    expected = history(full)
    for name, dtype in DTYPES.items():
        # The fp32 run's own general answers are kept: near a tie, half precision generates other tokens.
        shutil.rmtree(tmp_path / "cache" / "importance", ignore_errors=True)
        half = Run(full.folder.with_name(name))
        shutil.copytree(full.path("data"), half.path("data"))
        with emulated_precision(dtype):
            run_training(job, half, base)
        for key in ("train_loss", "validation_loss", "forgetting"):
            assert_close(history(half), expected, key)
        assert "skipped_steps" not in history(half)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_job_that_continues_an_earlier_one(project_with_evals, dtype):
    """The adapter of the first run is merged into its base in half precision; its tasks are evaluated and protected."""
    write_second_job(strategy="replay+distill+ewc+si")
    losses = {}
    for name, precision in (("fp32", contextlib.nullcontext()), ("half", emulated_precision(dtype))):
        shutil.rmtree("cache/importance", ignore_errors=True)
        with precision:
            run("one")
            second = run_second_job(name)
        losses[name] = history(second)
        shutil.rmtree("runs/one")
    for key in ("train_loss", "forgetting"):
        # Each run replays the answers of its own first model, which differ where two tokens are nearly as likely.
        assert_close(losses["half"], losses["fp32"], key, rel=0.15)
