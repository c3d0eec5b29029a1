"""Two processes on shares of each step's rows against one process on all of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.jobs import LORA

ROOT = Path(__file__).parents[2]


def test_the_workers_rows_are_all_rows_once_and_about_as_many_tokens():
    lengths = [90, 3, 41, 40, 8, 60, 2, 55]
    rows = TokenSequences.from_completion_starts([np.full(n, n) for n in lengths], [1] * len(lengths))
    parts = [ProcessGroup(rank, 3).shard(rows) for rank in range(3)]
    assert sorted(len(ids) for part in parts for ids in part.input_ids) == sorted(lengths)
    tokens = [part.tokens for part in parts]
    assert max(tokens) - min(tokens) < 20
    assert ProcessGroup().shard(rows) is rows
    assert len(ProcessGroup(2, 3).shard(rows[0:2])) == 0


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
    "lora-sharded": {
        "adapter": LORA,
        "batch_size": 1,
        "gradient_accumulation_steps": 7,
        "backend": {"type": "ray", "trainer": {"fsdp": "frozen"}},
        "forgetting": {
            "strategy": STRATEGIES.removesuffix("+si"),
            "eval_steps": 2,
            "distill": {"apply_to": "both"},
            "evals": {"t": {"kind": "text_nll", "data": "guard.jsonl"}},
        },
    },
    "full-strategies": {"adapter": None, "forgetting": "replay+distill+l2sp", "learning_rate": 0.001},
}


@pytest.mark.ludwig
def test_two_processes_end_with_the_weights_of_one(make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "guard.jsonl").write_text('{"text": "tea in a net"}\n{"text": "nine gates and thin ice"}\n')
    folders = {}
    for name, settings in CASES.items():
        job, run, base = make_job(name=f"{name}-alone", checkpoints_per_epoch=2, **settings)
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        shutil.copy("job.yaml", folder)
        run.path("retention").mkdir()
        run.path("retention", "base.jsonl").write_text('{"eval": "t", "kind": "text", "item": 1, "score": 4.0}\n')
        for part in ("data", "retention"):
            shutil.copytree(run.path(part), folder / "run" / part)
        train(job, run, base, lambda done, total, loss: None)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.training.two_workers",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, folders.values())], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-9000:]
    for name, folder in folders.items():
        alone, together = Run(tmp_path / f"{name}-alone").path("model"), folder / "run" / "model"
        file = "adapter_model.safetensors" if CASES[name]["adapter"] else "model.safetensors"
        expected, found = load_file(alone / file), load_file(together / file)
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(
                found[key],
                expected[key],
                atol=1e-5,
                rtol=1e-5,
                msg=lambda text, where=f"{name} {key}": f"{where}: {text}",
            )
        one, two = (json.loads((place / "training.json").read_text()) for place in (alone, together))
        assert [entry["loss"] for entry in two["train_loss"]] == pytest.approx(
            [entry["loss"] for entry in one["train_loss"]], abs=1e-5
        )
        assert [entry["loss"] for entry in two["validation_loss"]] == pytest.approx(
            [entry["loss"] for entry in one["validation_loss"]], abs=1e-5
        )
        assert (two["rows"], two["supervised_tokens"], two["best_step"]) == (
            one["rows"],
            one["supervised_tokens"],
            one["best_step"],
        )
        for mine, its in zip(two.get("retention", []), one.get("retention", []), strict=True):
            assert mine["scores"] == pytest.approx(its["scores"], abs=1e-5)
        for mine, its in zip(two.get("forgetting", []), one.get("forgetting", []), strict=True):
            assert mine == pytest.approx(its, rel=1e-3, abs=1e-5)
