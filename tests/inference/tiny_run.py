"""The folder of a finished run with a tiny model, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.inference.run_models import RunModels
from pipelines.prediction.models import tuned_job
from pipelines.storage.run_folder import FORMAT_VERSION, Run
from tests.tiny import make_model

TASKS = {
    "odd": {"data": "odd.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match", "max_new_tokens": 8},
    "say": {
        "data": "say.jsonl",
        "prompt": "Say {text}",
        "completion": "{out}",
        "metric": "chrf",
        "system": "Be kind.",
    },
}


def make_run(
    folder: Path, kind: str = "pad_is_eos", *, adapter: bool = True, pipeline: dict | None = None, **config
) -> Run:
    """A run in `folder`/run whose tuned model is a random LoRA adapter on a random base, or another random model."""
    base = make_model(folder / "base", kind)
    run = Run(folder / "run")
    run.folder.mkdir()
    job = {
        "base_model": str(base),
        "pipeline": {"tasks": TASKS, **(pipeline or {})},
        "generation": {"max_new_tokens": 24},
        **config,
    }
    if adapter:
        settings = {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}
        job["adapter"] = settings
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        tuned.save_pretrained(run.path("model"))
    else:
        make_model(run.path("model"), kind, seed=7)
    (run.path("config.yaml")).write_text(json.dumps(job))
    run.manifest |= {"format_version": FORMAT_VERSION, "config": "job.yaml", "stages": {"train": {"inputs": "x"}}}
    run.update()
    return run


def load_models(run: Run) -> RunModels:
    return RunModels.load(run, tuned_job(run))
