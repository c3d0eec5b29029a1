"""A run on the packaged model through the command line: few rows, few steps, and a new process for the prediction."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

DATA = Path(__file__).parents[1] / "data"


def alfine(folder, *arguments):
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def small_retention_evals(folder):
    """The first rows of the bundled retention evals: all of them take two minutes."""
    evals = {}
    for name, kind, count in (
        ("choices", "multiple_choice", 16),
        ("passages", "text_nll", 6),
        ("instructions", "kl", 6),
    ):
        rows = (DATA / "retention" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(rows[:count]), encoding="utf-8")
        evals[name] = {"kind": kind, "data": f"{name}.jsonl"}
    return evals


def test_a_run_on_the_packaged_model(tmp_path):
    lines = [json.loads(line) for line in (DATA / "sentiment.jsonl").read_text(encoding="utf-8").splitlines()]
    subset = [
        row
        for split, count in (("train", 48), ("validation", 8), ("test", 16))
        for row in [line for line in lines if line["split"] == split][:count]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in subset))
    config = {
        "pipeline": {
            "tasks": {
                "sentiment": {
                    "data": "rows.jsonl",
                    "prompt": "Is this review positive or negative?\n{review}",
                    "completion": "{label}",
                    "metric": "exact_match",
                    "max_new_tokens": 6,
                }
            },
            "forgetting": {"strategy": "l2sp", "evals": small_retention_evals(tmp_path)},
        },
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora", "r": 8},
        "trainer": {"epochs": 1, "batch_size": 8, "learning_rate": 0.001},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    assert "sentiment" in alfine(tmp_path, "run", "job.yaml", "--name", "real")
    report = json.loads((tmp_path / "runs/real/report.json").read_text())
    first, *_, last = report["training"]["validation_loss"]
    assert last["loss"] < first["loss"] / 2
    assert {example["tuned"] for example in report["examples"]} <= {"positive", "negative"}
    assert len(report["examples"]) == 16
    assert {result["n"] for result in report["retention"].values()} == {16, 6}
    output = alfine(tmp_path, "predict", "runs/real", "rows.jsonl")
    tuned = {example["prompt"].split("\n", 1)[1]: example["tuned"] for example in report["examples"]}
    predictions = {row["review"]: row["prediction"] for row in map(json.loads, output.splitlines())}
    assert {review: predictions[review] for review in tuned} == tuned
