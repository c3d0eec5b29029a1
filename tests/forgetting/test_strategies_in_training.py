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
    """A dozen rows of the bundled files: byte tokens make them long."""
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
def test_switched_off_they_change_no_bit(make_job, adapter):
    job, run, base = make_job(adapter, **ADAM)
    run_training(job, run, base)
    plain = weights_of(run)
    off = {"strategy": "+".join(OFF), **OFF}
    job, run, base = make_job(adapter, name="off", forgetting=off, **ADAM)
    run_training(job, run, base)
    found = weights_of(run)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("strategy", KINDS)
def test_each_holds_the_weights_back_and_says_by_how_much(make_job, adapter, strategy):
    moved = []
    for name, forgetting in (("plain", "none"), ("held", {"strategy": strategy, **_strong(strategy)})):
        job, run, base = make_job(adapter, name=name, forgetting=forgetting, epochs=3, **ADAM)
        run_training(job, run, base)
        moved.append(_distance(run, base, adapter))
    terms = history_of(run)["forgetting"]
    assert len(terms) == 9 and [entry["step"] for entry in terms] == list(range(1, 10))
    assert any(value for entry in terms for name, value in entry.items() if name in strategy)
    assert any(entry["penalty_to_task_grad_norm_ratio"] for entry in terms)
    if strategy != "replay":
        assert moved[1] < moved[0]


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
    ups = [name for name in weights if "lora_B" in name]
    return float(sum((weights[up] @ weights[up.replace("lora_B", "lora_A")]).square().sum() for up in ups))


@pytest.mark.parametrize("strategy", ["ewc+l2sp", "si", "replay+distill"])
def test_a_resumed_run_equals_the_undisturbed_one(make_job, strategy):
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
    whole, resumed = weights_of(run), weights_of(again)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert history_of(again)["forgetting"] == history_of(run)["forgetting"]
    if strategy == "si":
        kept = [load_file(one.path("forgetting", "si.safetensors")) for one in (run, again)]
        assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_accumulation_does_not_change_what_they_do(make_job, adapter):
    found = []
    for accumulate in (1, 3):
        job, run, base = make_job(
            adapter,
            name=f"by{accumulate}",
            forgetting="ewc+replay+distill",
            batch_size=6 // accumulate,
            gradient_accumulation_steps=accumulate,
        )
        run_training(job, run, base)
        found.append((weights_of(run), history_of(run)["forgetting"]))
    for name, weight in found[0][0].items():
        torch.testing.assert_close(weight, found[1][0][name], atol=1e-5, rtol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_interpolation_goes_back_as_far_as_its_budget_asks(make_job, adapter):
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
    found = history_of(run)["interpolate"]
    losses = {entry["scale"]: entry["loss"] for entry in found["general_loss"]}
    assert found["scale"] == max(scale for scale, loss in losses.items() if loss <= losses[0.0])
