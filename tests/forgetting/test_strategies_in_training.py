"""The strategies inside a training through Ludwig."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.jobs import LORA, run_training

pytestmark = pytest.mark.ludwig

ADAM = {"optimizer": {"type": "adamw"}, "learning_rate": 0.003}
KINDS = ["ewc", "si", "l2sp", "replay", "distill", "replay+distill"]
OFF = {
    "ewc": {"weight": 0.0},
    "si": {"weight": 0.0},
    "l2sp": {"weight": 0.0},
    "replay": {"fraction": 0.0},
    "distill": {"weight": 0.0},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def few_general_rows(tmp_path, monkeypatch):
    """A dozen short rows in place of the bundled files, which byte tokens would make long."""
    for name, columns in (("passages", "text"), ("instructions", "instruction")):
        folder = tmp_path / "bundled" / "general"
        folder.mkdir(parents=True, exist_ok=True)
        texts = [f"the inn at nine {n} in a net" for n in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({columns: text}) + "\n" for text in texts))
    monkeypatch.setattr("pipelines.forgetting.context.bundled_file", lambda name: tmp_path / "bundled" / name)


def weights_of(run):
    file = (
        "adapter_model.safetensors" if run.path("model", "adapter_model.safetensors").exists() else "model.safetensors"
    )
    return load_file(run.path("model", file))


def history_of(run):
    return json.loads(run.path("model", "training.json").read_text())


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_strategies_with_weight_zero_change_no_bit(make_job, adapter):
    job, run, base = make_job(adapter, **ADAM)
    run_training(job, run, base)
    plain = weights_of(run)
    off = {"strategy": "+".join(OFF), **OFF}
    job, run, base = make_job(adapter, name="off", forgetting=off, **ADAM)
    run_training(job, run, base)
    weights = weights_of(run)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("strategy", KINDS)
def test_every_strategy_reduces_the_distance_and_reports_its_losses(make_job, adapter, strategy):
    distances = []
    for name, forgetting in (("plain", "none"), ("protected", {"strategy": strategy, **_strong(strategy)})):
        job, run, base = make_job(adapter, name=name, forgetting=forgetting, epochs=3, **ADAM)
        run_training(job, run, base)
        distances.append(_distance(run, base, adapter))
    history = history_of(run)["forgetting"]
    assert len(history) == 9 and [entry["step"] for entry in history] == list(range(1, 10))
    assert any(value for entry in history for name, value in entry.items() if name in strategy)
    assert any(entry["penalty_to_task_grad_norm_ratio"] for entry in history)
    if strategy != "replay":
        assert distances[1] < distances[0]


def _strong(strategy):
    strong = {
        "ewc": {"weight": 300.0},
        "si": {"weight": 300.0},
        "l2sp": {"weight": 30.0},
        "replay": {"fraction": 0.3},
        "distill": {"weight": 30.0} if "replay" in strategy else {"weight": 30.0, "fraction": 0.3},
    }
    return {name: strong[name] for name in strategy.split("+")}


def _distance(run, base, adapter):
    weights = weights_of(run)
    if adapter is None:
        start = load_file(base / "model.safetensors")
        return float(sum((weights[name] - start[name]).square().sum() for name in start))
    pairs = [(name, name.replace("lora_B", "lora_A")) for name in weights if "lora_B" in name]
    return float(sum((weights[lora_B] @ weights[lora_A]).square().sum() for lora_B, lora_A in pairs))


@pytest.mark.parametrize("strategy", ["ewc+l2sp", "si", "replay+distill"])
def test_a_resumed_run_equals_the_uninterrupted_one(make_job, strategy):
    settings = {"epochs": 2, "steps_per_checkpoint": 2, **ADAM}
    job, run, base = make_job(LORA, forgetting=strategy, **settings)
    run_training(job, run, base)
    again = Run(run.folder.with_name("again"))
    shutil.copytree(run.path("data"), again.path("data"))

    def stop_after_five(done, total, loss):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, again, base, stop_after_five)
    run_training(job, again, base)
    uninterrupted, resumed = weights_of(run), weights_of(again)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert history_of(again)["forgetting"] == history_of(run)["forgetting"]
    if strategy == "si":
        first, second = (load_file(folder.path("forgetting", "si.safetensors")) for folder in (run, again))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_gradient_accumulation_does_not_change_the_strategies(make_job, adapter):
    results = []
    for accumulate in (1, 3):
        job, run, base = make_job(
            adapter,
            name=f"by{accumulate}",
            forgetting="ewc+replay+distill",
            batch_size=6 // accumulate,
            gradient_accumulation_steps=accumulate,
        )
        run_training(job, run, base)
        results.append((weights_of(run), history_of(run)["forgetting"]))
    for name, weight in results[0][0].items():
        torch.testing.assert_close(weight, results[1][0][name], atol=1e-5, rtol=1e-5)
    for entry, accumulated in zip(results[0][1], results[1][1], strict=True):
        assert entry == pytest.approx(accumulated, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_interpolation_chooses_the_largest_allowed_scale(make_job, adapter):
    job, run, base = make_job(adapter, name="plain", **ADAM)
    run_training(job, run, base)
    tuned = weights_of(run)
    forgetting = {"strategy": "interpolate", "interpolate": {"scale": 0.5}}
    job, run, base = make_job(adapter, name="half", forgetting=forgetting, **ADAM)
    run_training(job, run, base)
    half = weights_of(run)
    start = {} if adapter else load_file(base / "model.safetensors")
    for name, weight in half.items():
        expected = tuned[name] * (0.5 if "lora_B" in name else 1.0) if adapter else (start[name] + tuned[name]) / 2
        torch.testing.assert_close(weight, expected)
    job, run, base = make_job(
        adapter, name="none", forgetting={"strategy": "interpolate", "interpolate": {"max_loss_increase": 0.0}}, **ADAM
    )
    run_training(job, run, base)
    result = history_of(run)["interpolate"]
    losses = {entry["scale"]: entry["loss"] for entry in result["general_loss"]}
    assert result["scale"] == max(scale for scale, loss in losses.items() if loss <= losses[0.0])
