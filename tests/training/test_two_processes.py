"""A training in two processes gives the same weights and history as one in a single process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.emulated_precision import DTYPES
from tests.jobs import LORA
from tests.training.two_processes import precision_of

ROOT = Path(__file__).parents[2]


STRATEGIES = "replay+distill+ewc+si"
CASES = {
    "lora": {"adapter": LORA},
    "full": {"adapter": None},
    "lora-accumulate": {"adapter": LORA, "batch_size": 3, "gradient_accumulation_steps": 2},
    "full-accumulate": {"adapter": None, "batch_size": 1, "gradient_accumulation_steps": 5},
    "lora-strategies": {
        "adapter": LORA,
        "forgetting": STRATEGIES,
        "optimizer": {"type": "adamw"},
        "learning_rate": 0.001,
    },
    "lora-fsdp": {
        "adapter": LORA,
        "batch_size": 1,
        "gradient_accumulation_steps": 7,
        "backend": {"type": "ray", "trainer": {"fsdp": "frozen"}},
        "forgetting": {
            "strategy": STRATEGIES.removesuffix("+si"),
            "eval_steps": 2,
            "distill": {"apply_to": "both"},
            "ewc": {"fisher_samples": 5},  # measured here, with another number of rows in each process
            "evals": {"t": {"kind": "text_nll", "data": "passages.jsonl"}},
        },
    },
    "lora-fsdp-bf16": {
        "adapter": LORA,
        "backend": {"type": "ray", "trainer": {"fsdp": "frozen"}},
        "forgetting": "replay+distill+ewc",
        "learning_rate": 0.003,
    },
    "lora-fsdp-fp16": {
        "adapter": LORA,
        "backend": {"type": "ray", "trainer": {"fsdp": "frozen"}},
        "forgetting": "replay+distill",
        "learning_rate": 0.003,
    },
    "lora-fp16": {"adapter": LORA, "forgetting": "replay+distill", "learning_rate": 0.003},
    "qlora": {
        "adapter": LORA,
        "quantization": {"bits": 4},
        "forgetting": "replay+distill+ewc",
        "learning_rate": 0.001,
    },
    "full-bf16": {"adapter": None, "forgetting": "replay+ewc", "learning_rate": 0.003},
    "full-strategies": {"adapter": None, "forgetting": "replay+distill+l2sp", "learning_rate": 0.001},
}


def history(model_folder):
    return json.loads((model_folder / "training.json").read_text())


def losses(records):
    return [record["loss"] for record in records]


@pytest.mark.ludwig
def test_two_processes_give_the_weights_of_one(make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "passages.jsonl").write_text('{"text": "tea in a net"}\n{"text": "nine gates and thin ice"}\n')
    folders = {}
    for name, settings in CASES.items():
        job, run, base = make_job(name=f"{name}-single", checkpoints_per_epoch=2, **settings)
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        shutil.copy("job.yaml", folder)
        run.path("retention").mkdir()
        run.path("retention", "base.jsonl").write_text('{"eval": "t", "kind": "text", "item": 1, "score": 4.0}\n')
        for part in ("data", "retention"):
            shutil.copytree(run.path(part), folder / "run" / part)
        with precision_of(name):
            train(job, run, base, lambda done, total, loss: None)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.training.two_processes"]
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, folders.values())],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ALFINE_CACHE": str(tmp_path / "cache-2")},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-9000:]
    for name, folder in folders.items():
        file = "adapter_model.safetensors" if CASES[name]["adapter"] else "model.safetensors"
        assert_same_training(folder / "run" / "model", Run(tmp_path / f"{name}-single").path("model"), file, name)
    assert_same_importances(tmp_path / "cache-2", tmp_path / "cache")


def assert_same_importances(cache, expected_cache):
    """Each process has measured a part of the rows."""
    files = {path.relative_to(expected_cache) for path in expected_cache.rglob("*.safetensors")}
    assert files and files == {path.relative_to(cache) for path in cache.rglob("*.safetensors")}
    for file in files:
        expected = load_file(expected_cache / file)
        for name, tensor in load_file(cache / file).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].max()))


def assert_same_training(folder, expected_folder, file, case):
    weights, expected_weights = load_file(folder / file), load_file(expected_folder / file)
    # In half precision the rounding depends on the rows of a micro-batch, which differ.
    is_half = case.rpartition("-")[2] in DTYPES
    tolerance = 3e-3 if is_half else 1e-5
    assert weights.keys() == expected_weights.keys()
    for name, expected_weight in expected_weights.items():
        torch.testing.assert_close(
            weights[name],
            expected_weight,
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, location=f"{case} {name}": f"{location}: {text}",
        )
    actual, expected = history(folder), history(expected_folder)
    for split in ("train_loss", "validation_loss"):
        assert losses(actual[split]) == pytest.approx(
            losses(expected[split]), abs=10 * tolerance if is_half else 1e-5, rel=1e-5
        )
    for key in ("rows", "supervised_tokens", "best_step", "overflowed_steps"):
        assert actual.get(key) == expected.get(key)
    for record, expected_record in zip(actual.get("retention", []), expected.get("retention", []), strict=True):
        assert record["scores"] == pytest.approx(expected_record["scores"], abs=1e-5)
    for record, expected_record in zip(actual.get("forgetting", []), expected.get("forgetting", []), strict=True):
        assert record == pytest.approx(expected_record, rel=0.05 if is_half else 1e-3, abs=tolerance)
