"""Training on Ray: two real workers on this machine, one of them killed in the middle."""

import json
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import ConfigError, ModelError
from pipelines.storage.files import read_jsonl
from pipelines.training.ray import train_on_ray, uses_ray
from pipelines.training.train import train
from tests.jobs import LORA, run
from tests.tiny import make_model

pytestmark = pytest.mark.ludwig


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[train]'")
    yield ray
    ray.shutdown()


def two_workers(job, **settings):
    job.ludwig["backend"] = {
        "type": "ray",
        "trainer": {"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 0.5}, **settings},
    }
    return job


def test_local_is_the_default(make_job):
    job, _, _ = make_job(LORA)
    assert not uses_ray(job)
    assert uses_ray(two_workers(job))


def test_without_ray_it_is_said(make_job, monkeypatch):
    job, folder, base = make_job(LORA)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ConfigError,
        match=r"backend.type ray needs Ray, which is not installed; pip install 'ray\[train\]', or write type: local",
    ):
        train_on_ray(two_workers(job), folder, base, lambda *_: None)


def test_a_killed_worker_is_replaced_and_the_loss_curve_goes_on(ray, make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    settings = {"epochs": 100, "steps_per_checkpoint": 5, "learning_rate": 0.001, "forgetting": "replay+distill"}
    job, alone, base = make_job(LORA, name="alone", **settings)
    train(job, alone, base, lambda done, total, loss: None)
    job, shared, base = make_job(LORA, name="together", **settings)
    killed = []

    def kill_one(done, total, loss):
        if done > 10 and not killed:
            workers = [
                one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())
            ]
            killed.append((done, len(workers)))
            workers[-1].kill()

    train_on_ray(two_workers(job), shared, base, kill_one)
    assert killed and killed[0][0] < 300 and killed[0][1] == 2
    one, two = (json.loads(place.path("model", "training.json").read_text()) for place in (alone, shared))
    assert [entry["step"] for entry in two["train_loss"]] == list(range(1, 301))
    assert [entry["loss"] for entry in two["train_loss"]] == pytest.approx(
        [entry["loss"] for entry in one["train_loss"]], abs=1e-3
    )
    expected, found = (load_file(place.path("model", "adapter_model.safetensors")) for place in (alone, shared))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=1e-3)
    assert not shared.path("training", "ray").exists()


def test_the_same_yaml_with_a_cluster_gives_the_same_run(ray, project, monkeypatch):
    guards = "pipeline.forgetting.evals={knowledge: {kind: multiple_choice, data: choices.jsonl}, general: {kind: kl, data: asked.jsonl}}"
    items = [{"question": f"is {n} odd", "choices": ["no", "yes", "the tea"], "answer": n % 2} for n in range(40)]
    (project / "choices.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (project / "asked.jsonl").write_text("".join(json.dumps({"instruction": f"say {n}"}) + "\n" for n in range(9)))
    plain = ("trainer.optimizer={type: sgd}", "trainer.learning_rate=0.1", "adapter.dropout=0.0")
    here = run("here", guards, *plain)
    monkeypatch.setenv("ALFINE_CACHE", str(project / "another"))
    spread = run(
        "spread",
        guards,
        *plain,
        "backend={type: ray, trainer: {num_workers: 2, use_gpu: false, resources_per_worker: {CPU: 0.5}}}",
    )
    for which in ("base", "tuned"):
        one, two = (read_jsonl(place.path(which, "completions.jsonl")) for place in (here, spread))
        if which == "base":
            assert [row["completion"] for row in one] == [row["completion"] for row in two]
        assert [row["reference_nll"] for row in two] == pytest.approx([row["reference_nll"] for row in one], abs=1e-3)
        one, two = (read_jsonl(place.path("retention", f"{which}.jsonl")) for place in (here, spread))
        assert [line["score"] for line in two if line["kind"] == "answers"] == pytest.approx(
            [line["score"] for line in one if line["kind"] == "answers"], abs=1e-3
        )
        assert [(line["eval"], line["item"]) for line in one] == [(line["eval"], line["item"]) for line in two]
    assert spread.path("report.html").exists()


def test_more_workers_than_there_are_cores_are_refused(ray, make_job):
    job, folder, base = make_job(LORA)
    with pytest.raises(ConfigError, match="requests 999 × 1 CPU, this machine has"):
        train_on_ray(two_workers(job, num_workers=999, resources_per_worker={"CPU": 1}), folder, base, lambda *_: None)


def test_what_the_user_can_mend_is_said_once_and_not_tried_again(ray, make_job, tmp_path):
    teacher = make_model(tmp_path / "other", "sentencepiece")
    job, folder, base = make_job(
        LORA, forgetting={"strategy": "distill", "distill": {"teacher": str(teacher), "apply_to": "task"}}
    )
    with pytest.raises(ModelError, match="has another tokenizer than the base"):
        train_on_ray(two_workers(job), folder, base, lambda *_: None)
