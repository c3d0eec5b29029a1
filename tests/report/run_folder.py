"""A run folder as a finished run leaves it, without a model."""

import json
from pathlib import Path

import yaml


def line(task, row, prompt, reference, completion, **more):
    return {
        "task": task, "row": row, "prompt": prompt, "reference": reference, "completion": completion,
        "reference_loss": 1.5, "reference_tokens": 3, "new_tokens": 3, "finished": True, "fields": {}, **more,
    }  # fmt: skip


def make_run(folder: Path, rows: int = 40, base_answer="The review is {}.", tuned_answer="{}") -> Path:
    """`rows` rows of a label task: the base answers in another form, the tuned model exactly."""
    labels = ["positive", "negative"]
    sides = {
        side: [line("mood", n, f"review {n}", labels[n % 2], answer.format(labels[n % 2])) for n in range(rows)]
        for side, answer in (("base", base_answer), ("tuned", tuned_answer))
    }
    for side, lines in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        write_lines(folder / side / "completions.jsonl", lines)
        write_lines(folder / side / "probes.jsonl", [{"title": "free", "prompt": "say", "completion": side}])
    (folder / "model").mkdir()
    training = {
        "steps": 9, "rows": 70, "supervised_tokens": 210, "tokens": 2000, "seconds": 3.5,
        "train_loss": [{"step": n, "loss": 2 / n} for n in range(1, 10)],
        "validation_loss": [{"step": 0, "loss": 2.0, "tasks": {"mood": 2.0}}, {"step": 9, "loss": 0.3, "tasks": {"mood": 0.3}}],
        "best_step": 9, "stopped_early": False, "trainable_parameters": 10, "parameters": 100, "peak_memory_bytes": 10**9,
    }  # fmt: skip
    (folder / "model" / "training.json").write_text(json.dumps(training))
    manifest = {
        "format_version": 1, "name": folder.name, "command": "alfine run job.yaml --name x", "config": "job.yaml",
        "base_model": "some-model", "seed": 1, "versions": {"torch": "2"}, "generation": {"max_new_tokens": 8},
        "hardware": {"cpu": "a cpu", "cores": 2, "memory_gb": 4.0, "gpu": None},
        "stages": {"prepare": {"seconds": 1.0, "finished": "2026-01-01T00:00:00Z", "inputs": "a"}},
        "data": {"mood": {"train": 70, "validation": 5, "test": rows, "file": "mood.jsonl", "sha256": "0"}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = {"pipeline": {"tasks": {"mood": {"data": "mood.jsonl", "prompt": "{a}", "completion": "{b}", "metric": "label"}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_lines(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
