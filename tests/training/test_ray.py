"""Training and evaluation on Ray, with two workers on this machine."""

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import ConfigError, MachineError, ModelError
from pipelines.modeling.memory import free_memory
from pipelines.storage.files import read_jsonl
from pipelines.training import ray_cluster
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


def with_two_workers(job, **settings):
    job.ludwig["backend"] = {
        "type": "ray",
        "trainer": {"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 0.5}, **settings},
    }
    return job


def test_local_is_the_default(make_job):
    job, _, _ = make_job(LORA)
    assert not uses_ray(job)
    assert uses_ray(with_two_workers(job))


def test_a_missing_ray_package_is_an_error(make_job, monkeypatch):
    job, folder, base = make_job(LORA)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ConfigError,
        match=r"backend.type ray needs Ray, which is not installed; pip install 'ray\[train\]', or write type: local",
    ):
        train_on_ray(with_two_workers(job), folder, base, lambda *_: None)


def test_a_ray_that_does_not_start_is_an_error(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup.\nMore")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(MachineError, match=r"start it .this machine.: The current node timed out during startup\.$"):
        ray_cluster.connect(ConfigError("Ray is not installed"))


def on_cluster(monkeypatch, job, gpus, **settings):
    """The resources that `job` requests on a cluster of two nodes with `gpus` GPUs."""
    node = {"CPU": 4.0, "GPU": gpus / 2}
    stub = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": gpus}, nodes=lambda: 2 * [{"Resources": node}])
    monkeypatch.setattr(ray_cluster, "ray", stub)
    job.ludwig["backend"] = {"type": "ray", "trainer": settings}
    return ray_cluster.resources(job)


def test_a_worker_has_one_gpu_or_none(make_job, monkeypatch):
    job, _, _ = make_job(LORA)
    assert on_cluster(monkeypatch, job, 4.0) == (4, {"CPU": 1, "GPU": 1})
    assert on_cluster(monkeypatch, job, 0.0) == (2, {"CPU": 1})
    assert on_cluster(monkeypatch, job, 4.0, use_gpu=False) == (2, {"CPU": 1})
    assert on_cluster(monkeypatch, job, 4.0, resources_per_worker={"CPU": 2}) == (4, {"CPU": 2, "GPU": 1})
    for amount in (0.5, 2):
        with pytest.raises(ConfigError, match=f"GPU is {amount}, but a worker computes on one GPU.*; write GPU: 1"):
            on_cluster(monkeypatch, job, 4.0, resources_per_worker={"GPU": amount})
    with pytest.raises(ConfigError, match="GPU is 1, but use_gpu is false; write GPU: 0"):
        on_cluster(monkeypatch, job, 4.0, use_gpu=False, resources_per_worker={"GPU": 1})


def test_gpus_are_hidden_from_workers_on_the_cpu(make_job, monkeypatch):
    job, _, _ = make_job(LORA)
    for gpus, use_gpu, hides in ((4.0, False, True), (4.0, True, False), (0.0, False, False)):
        _, resources = on_cluster(monkeypatch, job, gpus, use_gpu=use_gpu, num_workers=2)
        variables = ray_cluster.runtime_env(2, resources)["env_vars"]
        assert variables.get("CUDA_VISIBLE_DEVICES") == ("" if hides else None)


def test_workers_divide_the_memory_of_the_machine_that_they_may_share(make_job, monkeypatch):
    """Nodes have 4 CPUs; two have a GPU, or none."""
    job, _, _ = make_job(LORA)
    for gpus, num_workers, amounts, sharing in (
        (0.0, 3, {"CPU": 1}, 3),
        (0.0, 8, {"CPU": 1}, 4),
        (0.0, 8, {"CPU": 3}, None),
        (0.0, 1, {"CPU": 1}, None),
        (2.0, 2, {"CPU": 1, "GPU": 1}, None),
        (4.0, 4, {"CPU": 1, "GPU": 1}, 2),
    ):
        on_cluster(monkeypatch, job, gpus, num_workers=num_workers)
        variables = ray_cluster.runtime_env(num_workers, amounts).get("env_vars", {})
        assert variables.get("ALFINE_WORKERS_PER_MACHINE") == (None if sharing is None else str(sharing))


def test_free_memory_is_the_part_of_the_worker(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert free_memory(torch.device("cpu")) == 1000
    monkeypatch.setenv("ALFINE_WORKERS_PER_MACHINE", "4")
    assert free_memory(torch.device("cpu")) == 250


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "ray::X() (pid=1)\n  File x\npipelines.errors.ModelError: model 'x' cannot be loaded",
            "model 'x' cannot be loaded",
        ),
        ("ray::X()\nValueError: pipelines.errors.ModelError: x", "ValueError: pipelines.errors.ModelError: x"),
        ("", "unknown reason"),
    ],
)
def test_an_error_of_a_worker_is_one_line(text, line):
    assert ray_cluster.error_line(RuntimeError(text)) == line


def test_training_resumes_after_a_worker_is_killed(ray, make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    settings = {"epochs": 100, "steps_per_checkpoint": 5, "learning_rate": 0.001, "forgetting": "replay+distill"}
    job, local_run, base = make_job(LORA, name="local", **settings)
    train(job, local_run, base, lambda done, total, loss: None)
    job, ray_run, base = make_job(LORA, name="on-ray", **settings)
    killed = []

    def kill_a_worker(done, total, loss):
        if done > 10 and not killed:
            processes = psutil.Process().children(recursive=True)
            workers = [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]
            killed.append((done, len(workers)))
            workers[-1].kill()

    train_on_ray(with_two_workers(job), ray_run, base, kill_a_worker)
    assert killed and killed[0][0] < 300 and killed[0][1] == 2
    local, on_ray = (
        json.loads(run.path("model", "training.json").read_text())["train_loss"] for run in (local_run, ray_run)
    )
    assert [entry["step"] for entry in on_ray] == list(range(1, 301))
    assert [entry["loss"] for entry in on_ray] == pytest.approx([entry["loss"] for entry in local], abs=1e-3)
    expected, weights = (load_file(run.path("model", "adapter_model.safetensors")) for run in (local_run, ray_run))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-3, rtol=1e-3)
    assert not ray_run.path("training", "ray").exists()


def test_workers_train_on_a_quantized_base(ray, make_job, tmp_path, monkeypatch):
    """Each worker loads the base in 4 bits."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    settings = {"quantization": {"bits": 4}, "epochs": 2, "learning_rate": 0.001, "forgetting": "replay+ewc"}
    job, local_run, base = make_job(LORA, name="local", **settings)
    train(job, local_run, base, lambda done, total, loss: None)
    job, ray_run, base = make_job(LORA, name="on-ray", **settings)
    train_on_ray(with_two_workers(job), ray_run, base, lambda *_: None)
    local, on_ray = (
        [entry["loss"] for entry in json.loads(run.path("model", "training.json").read_text())["train_loss"]]
        for run in (local_run, ray_run)
    )
    assert len(local) == 6 and on_ray == pytest.approx(local, abs=1e-3)
    expected, weights = (load_file(run.path("model", "adapter_model.safetensors")) for run in (local_run, ray_run))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-3, rtol=1e-3)


EVALS = """pipeline.forgetting.evals={
    knowledge: {kind: multiple_choice, data: choices.jsonl}, general: {kind: kl, data: instructions.jsonl}
}"""


def test_a_run_on_ray_equals_a_local_run(ray, project, monkeypatch):
    items = [
        {"question": f"is {index} odd", "choices": ["no", "yes", "the tea"], "answer": index % 2} for index in range(40)
    ]
    (project / "choices.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    instructions = [{"instruction": f"say {index}"} for index in range(9)]
    (project / "instructions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in instructions))
    overrides = (EVALS, "trainer.optimizer={type: sgd}", "trainer.learning_rate=0.1", "adapter.dropout=0.0")
    local_run = run("local", *overrides)
    monkeypatch.setenv("ALFINE_CACHE", str(project / "another"))
    backend = "{type: ray, trainer: {num_workers: 2, use_gpu: false, resources_per_worker: {CPU: 0.5}}}"
    ray_run = run("on-ray", *overrides, f"backend={backend}")
    for side in ("base", "tuned"):
        local, on_ray = (read_jsonl(alfine_run.path(side, "completions.jsonl")) for alfine_run in (local_run, ray_run))
        if side == "base":
            assert [row["completion"] for row in on_ray] == [row["completion"] for row in local]
        assert [row["reference_nll"] for row in on_ray] == pytest.approx(
            [row["reference_nll"] for row in local], abs=1e-3
        )
        local, on_ray = (
            read_jsonl(alfine_run.path("retention", f"{side}.jsonl")) for alfine_run in (local_run, ray_run)
        )
        local_kl, ray_kl = ([row["score"] for row in rows if row["kind"] == "kl"] for rows in (local, on_ray))
        assert len(ray_kl) == 9 and ray_kl == pytest.approx(local_kl, abs=1e-3)
        assert [(row["eval"], row["item"]) for row in on_ray] == [(row["eval"], row["item"]) for row in local]
    assert ray_run.path("report.html").exists()


def test_more_workers_than_cores_are_an_error(ray, make_job):
    job, folder, base = make_job(LORA)
    with pytest.raises(ConfigError, match="requests 999 × 1 CPU, this machine has"):
        train_on_ray(
            with_two_workers(job, num_workers=999, resources_per_worker={"CPU": 1}), folder, base, lambda *_: None
        )


def test_an_error_in_a_worker_is_raised_without_retries(ray, make_job, tmp_path):
    teacher = make_model(tmp_path / "other", "sentencepiece")
    job, folder, base = make_job(
        LORA, forgetting={"strategy": "distill", "distill": {"teacher": str(teacher), "apply_to": "task"}}
    )
    with pytest.raises(ModelError, match="has another tokenizer than the base"):
        train_on_ray(with_two_workers(job), folder, base, lambda *_: None)
