"""The edits of a plan that does not fit: each is valid, and the job fits with it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipelines.checks import job as check_module
from pipelines.checks.job import check_job
from pipelines.cli import main
from pipelines.config.job import load_job
from pipelines.errors import AlfineError
from pipelines.planning.plan import make_plan
from pipelines.planning.target_hardware import find_hardware
from tests.planning.large_models import SIZES, write_large_model

WORDS = ["lamp", "boat", "garden", "letter", "kettle", "river", "window", "train", "violin", "market"]
NUM_CONFIGS = 20
Config = dict[str, Any]


def write_rows(folder: Path, name: str, count: int, most_words: int) -> None:
    rng = random.Random(name)
    rows = []
    for _ in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randrange(most_words // 4, most_words)))
        rows.append({"text": text, "label": rng.choice(["yes", "no", "maybe"])})
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for size in SIZES:
        write_large_model(folder / size, size)
    write_rows(folder, "short.jsonl", 60, 60)
    write_rows(folder, "long.jsonl", 60, 3000)
    write_rows(folder, "very_long.jsonl", 40, 9000)
    return folder


def random_config(rng: random.Random, folder: Path) -> Config:
    """A config of a job that may not fit: its base, its trained weights, its rows, its optimizer, its processes."""
    kind = rng.choice(["full", "lora", "lora", "qlora"])
    task = {
        "prompt": "{text}",
        "completion": "{label}",
        "metric": "exact_match",
        "max_new_tokens": rng.choice([8, 256]),
    }
    task["data"] = str(folder / rng.choice(["short.jsonl", "long.jsonl", "long.jsonl", "very_long.jsonl"]))
    if rng.random() < 0.4:
        task["too_long"] = rng.choice(["refuse", "truncate_prompt", "drop"])
    pipeline: Config = {"tasks": {"a": task}, "forgetting": rng.choice(["none", "none", "auto", "ewc", "replay", "si"])}
    if rng.random() < 0.3:
        pipeline["tasks"]["b"] = {
            **task,
            "data": str(folder / "short.jsonl"),
            "too_long": rng.choice(["refuse", "drop"]),
        }
    if rng.random() < 0.3:
        pipeline["too_long"] = rng.choice(["refuse", "truncate_prompt", "drop"])
    config: Config = {"pipeline": pipeline, "model_type": "llm", "base_model": str(folder / rng.choice(list(SIZES)))}
    config["adapter"] = None if kind == "full" else {"type": rng.choice(["lora", "lora", "ia3"])}
    if kind == "full" and rng.random() < 0.5:
        del config["adapter"]
    if kind == "qlora":
        config |= {"adapter": {"type": "lora"}, "quantization": {"bits": rng.choice([4, 8])}}
    trainer: Config = {"type": "finetune", "epochs": 1, "batch_size": rng.choice([1, 2, 8, 64, "auto"])}
    if trainer["batch_size"] == "auto":
        trainer["effective_batch_size"] = rng.choice([4, 64])
    elif rng.random() < 0.4:
        trainer["gradient_accumulation_steps"] = rng.choice([1, 4])
    if rng.random() < 0.3:
        trainer["enable_gradient_checkpointing"] = rng.choice([True, False])
    if rng.random() < 0.3:
        optimizers = [{"type": "sgd", "momentum": 0.9}, {"type": "adamw", "weight_decay": 0.1}, {"type": "adafactor"}]
        trainer["optimizer"] = rng.choice(optimizers)
    if rng.random() < 0.3:
        workers = {"num_workers": 2, "fsdp": rng.choice([None, "frozen"])}
        config["backend"] = rng.choice(["ray", {"type": "ray", "trainer": workers}])
    if rng.random() < 0.5:
        config["preprocessing"] = {"global_max_sequence_length": rng.choice([1024, 8192, 32_768])}
    return {**config, "trainer": trainer}


def test_every_edit_is_valid_and_makes_the_job_fit(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "check_optional_packages", lambda _: None)  # bitsandbytes may not be installed
    rng = random.Random(19)
    counts = {"fits": 0, "edited": 0, "nothing fits": 0, "invalid": 0}
    for index in range(NUM_CONFIGS):
        path = tmp_path / f"job{index}.yaml"
        path.write_text(yaml.safe_dump(random_config(rng, models)), encoding="utf-8")
        try:
            job = load_job(path)
            check_job(job)
        except AlfineError:
            counts["invalid"] += 1
            continue
        hardware = find_hardware(rng.choice(["t4", "a10", "rtx4090", "rtx3060"]), job.pipeline.hardware)
        plan = make_plan(job, hardware)
        counts["fits" if plan.fits else "edited" if plan.edits else "nothing fits"] += 1
        for edit in plan.edits:
            keys = [override.partition("=")[0] for override in edit.overrides]
            assert len(set(keys)) == len(keys), edit
            edited = load_job(path, edit.overrides)
            check_job(edited)
            again = make_plan(edited, hardware)
            assert again.fits and again.memory.peak == edit.peak <= plan.available, (index, edit)
            if "preprocessing.global_max_sequence_length" in keys:
                assert all(edited.too_long(name) != "refuse" for name in again.too_long), (index, edit)
                assert max(again.too_long.values(), default=0.0) == edit.left_out <= 0.5
            assert again.workload.rows_per_step == plan.workload.rows_per_step
    assert counts["edited"] >= 5 and counts["invalid"] <= NUM_CONFIGS // 2, counts


def test_the_command_says_what_an_edit_costs(models: Path, tmp_path: Path) -> None:
    config = {
        "pipeline": {
            "tasks": {
                "a": {
                    "data": str(models / "very_long.jsonl"),
                    "prompt": "{text}",
                    "completion": "{label}",
                    "too_long": "refuse",
                }
            },
            "forgetting": "none",
        },
        "base_model": str(models / "7B"),
        "adapter": {"type": "lora"},
        "quantization": {"bits": 4},
        "trainer": {"type": "finetune", "batch_size": 1},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    result = CliRunner().invoke(main, ["plan", str(path), "--gpu", "a40"])
    assert result.exit_code == 3, result.output
    output = " ".join(result.output.split())
    assert "pipeline.tasks.a.too_long=drop" in output and "pipeline.too_long=drop" not in output
    assert "% of the rows" in output
    result = CliRunner().invoke(
        main, ["plan", str(path), "--gpu", "h100", "preprocessing.global_max_sequence_length=512"]
    )
    assert "of the rows are longer than the limit of 512 tokens; the run refuses them" in " ".join(
        result.output.split()
    )
