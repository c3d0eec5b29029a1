"""Small jobs on random models, with prepared rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.config.chat_template import PLAIN_TEXT
from pipelines.config.job import Job, load_job
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples, write_splits
from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.gpu_acceptance.models import ALL_MATRICES
from tests.gpu_acceptance.registry import Context

Pair = tuple[str, str]
LORA: dict[str, Any] = {"type": "lora", "r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ALL_MATRICES}
WORDS = ("tea", "the inn", "a gate", "nine", "thin ice", "in a net")


def short_pairs(count: int) -> list[Pair]:
    """Rows of 15 to 60 byte tokens with a common beginning and few different completions."""
    return [(f"Is it? {WORDS[n % 6]} {n} " * (1 + n % 3), ("yes", "no thanks", "maybe")[n % 3]) for n in range(count)]


def make_job(
    context: Context,
    name: str,
    model: Path,
    pairs: Sequence[Pair] | None = None,
    *,
    adapter: dict[str, Any] | None = LORA,
    forgetting: Any = "none",
    validation: int = 4,
    config: dict[str, Any] | None = None,
    **trainer: Any,
) -> tuple[Job, Run]:
    """A job with one task and its run folder with tokenized rows. `config` is merged into the top level."""
    folder = context.folder / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    pairs = short_pairs(36) if pairs is None else pairs
    splits = {"train": pairs, "validation": pairs[:validation], "test": pairs[:1]}
    data = {}
    for split, rows in splits.items():
        if rows:
            data[split] = str(folder / f"{split}.jsonl")
            text = "".join(json.dumps({"p": prompt, "c": completion}) + "\n" for prompt, completion in rows)
            Path(data[split]).write_text(text, encoding="utf-8")
    task = {"data": data, "prompt": "{p}", "completion": "{c}", "metric": "exact_match"}
    forgetting = forgetting if isinstance(forgetting, dict) else {"strategy": forgetting}
    whole = {
        "base_model": str(model),
        "pipeline": {
            "seed": 3,
            "tasks": {"t": task},
            "chat_template": False,
            "forgetting": {"evals": "none", **forgetting},
        },
        "trainer": {
            "epochs": 1,
            "batch_size": 6,
            "learning_rate": 1e-3,
            "early_stop": -1,
            "optimizer": {"type": "adamw"},
            "learning_rate_scheduler": {"decay": None},
            **trainer,
        },
        **({"adapter": adapter} if adapter else {}),
        **(config or {}),
    }
    (folder / "job.yaml").write_text(json.dumps(whole), encoding="utf-8")
    job, run = load_job(folder / "job.yaml"), Run(folder / "run")
    prompt_format = PromptFormat.from_folder(model, PLAIN_TEXT)
    write_splits(tokenize_examples(load_examples(job.pipeline), prompt_format), run.path("data"))
    return job, run


def train_job(job: Job, run: Run, model: Path, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Trains and returns the history."""
    train(job, run, model, progress or (lambda done, total, loss: None))
    return dict(json.loads(run.path("model", "training.json").read_text(encoding="utf-8")))


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    (file,) = run.path("model").glob("*model.safetensors")
    return load_file(file)


def losses(history: dict[str, Any]) -> list[float]:
    return [float(entry["loss"]) for entry in history["train_loss"]]


def relative_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """‖actual − expected‖ / ‖expected‖ over all tensors of `expected`, in fp64."""
    difference = sum(float((actual[name].double() - value.double()).square().sum()) for name, value in expected.items())
    norm = sum(float(value.double().square().sum()) for value in expected.values())
    return float((difference / max(norm, 1e-30)) ** 0.5)
