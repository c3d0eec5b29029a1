"""Runs and trainings on the pretend device, for `test_pretend_device.py`.

    python -m tests.training.pretend_cases FOLDER MACHINE [CASE …]

MACHINE is a key of `tests.pretend_run.MACHINES`. Writes FOLDER/results.json: for each case its error (None if it ran), the counts of each training step, and the losses.
Prints the launches and host waits of each case's last step.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from pipelines.config.job import Job, load_job
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples, write_splits
from pipelines.run import run_job
from pipelines.storage.run_folder import Run
from pipelines.training.callback import LudwigCallback
from pipelines.training.train import train
from tests.jobs import LORA, QUIET
from tests.pretend_device import COUNTS
from tests.pretend_run import install_in_alfine, pretend_device
from tests.tiny import make_model

ROOT = Path(__file__).parents[2]
GPU_LORA = ROOT / "ludwig_configs" / "gpu_lora.yaml"
STRATEGIES = ("none", "ewc", "si", "l2sp", "replay", "distill", "replay+distill", "interpolate")
STEPS: list[dict[str, Any]] = []
"""The counts of each training step of the current case."""


def write_project() -> None:
    """Two base models, two dozen rows, general rows and a text, in the current folder."""
    make_model(Path("base"))
    make_model(Path("teacher"), seed=5)
    rows = [
        {"q": f"is {n} odd", "a": ["no", "yes"][n // 4 % 2], "split": ["train", "train", "validation", "test"][n % 4]}
        for n in range(24)
    ]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("passages.jsonl").write_text('{"text": "tea in a net"}\n{"text": "nine gates and thin ice"}\n')
    Path("instructions.jsonl").write_text('{"instruction": "say tea"}\n{"instruction": "name an inn"}\n')
    for name, column in (("passages", "text"), ("instructions", "instruction")):
        file = Path("bundled", "general", f"{name}.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({column: f"the inn at nine {n} in a net"}) + "\n" for n in range(12)))


def load(name: str, adapter: bool, forgetting: Any, **trainer: Any) -> Job:
    task = {"data": "odd.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match", "max_new_tokens": 4}
    settings = {"evals": "none", **(forgetting if isinstance(forgetting, dict) else {"strategy": forgetting})}
    optimizer = {"type": "adamw"}
    config = {
        "pipeline": {"tasks": {"odd": task}, "forgetting": settings},
        "base_model": "./base",
        "trainer": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "optimizer": optimizer, **trainer},
        "generation": {"max_new_tokens": 8},
        **({"adapter": {**LORA, "target_modules": ["q_proj", "v_proj", "down_proj"]}} if adapter else {}),
    }
    Path(f"{name}.yaml").write_text(json.dumps(config))
    return load_job(Path(f"{name}.yaml"))


def prepared_run(name: str, job: Job) -> Run:
    run = Run(Path("runs") / name)
    write_splits(
        tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(Path(job.base_model))), run.path("data")
    )
    return run


def training(name: str, adapter: bool, forgetting: Any = "none", **trainer: Any) -> Run:
    job = load(name, adapter, forgetting, **trainer)
    run = prepared_run(name, job)
    train(job, run, Path(job.base_model), lambda done, total, loss: None)
    return run


def whole_run(name: str, adapter: bool) -> Run:
    """Base and tuned completions, retention evals before, during and after the training, and the report."""
    evals = {"t": {"kind": "text_nll", "data": "passages.jsonl"}, "kl": {"kind": "kl", "data": "instructions.jsonl"}}
    job = load(name, adapter, {"strategy": "replay+distill", "eval_steps": 2, "evals": evals})
    run = Run(Path("runs") / name)
    run_job(job, run, "alfine run", QUIET)
    return run


def resumed(name: str, adapter: bool) -> Run:
    """A training that is interrupted after its second step and resumed."""

    def interrupt(done: int, total: int, loss: float | None) -> None:
        if done == 2 and loss is not None:
            raise KeyboardInterrupt

    job = load(name, adapter, "replay+ewc", steps_per_checkpoint=1)
    run = prepared_run(name, job)
    try:
        train(job, run, Path(job.base_model), interrupt)
    except KeyboardInterrupt:
        train(job, run, Path(job.base_model), lambda done, total, loss: None)
    return run


def gpu_lora_step(name: str, layers: int = 28, attention: str = "auto", **trainer: Any) -> Run:
    """Two steps on the rows of ludwig_configs/gpu_lora.yaml, with as many layers as its model and a tiny width."""
    make_model(Path(name), num_hidden_layers=layers)
    Path("data").mkdir(exist_ok=True)
    for task in ("sentiment", "summaries", "code"):
        lines = (ROOT / "data" / f"{task}.jsonl").read_text().splitlines(keepends=True)
        Path("data", f"{task}.jsonl").write_text("".join(lines[:24]))
    config = yaml.safe_load(GPU_LORA.read_text())
    config["base_model"], config["pipeline"]["forgetting"] = f"./{name}", "none"
    config["pipeline"]["hardware"] = {"attention": attention}
    del config["trainer"]["epochs"], config["pipeline"]["report"]
    config["trainer"] |= {"train_steps": 2, "steps_per_checkpoint": 2, **trainer}
    Path(f"{name}.yaml").write_text(json.dumps(config))
    job = load_job(Path(f"{name}.yaml"))
    run = prepared_run(name, job)
    train(job, run, Path(job.base_model), lambda done, total, loss: None)
    return run


CASES: dict[str, Callable[[str], Run]] = {
    **{
        f"{kind}-{strategy}": lambda name, kind=kind, strategy=strategy: training(name, kind == "lora", strategy)
        for kind in ("lora", "full")
        for strategy in STRATEGIES
    },
    "lora-teacher": lambda name: training(
        name, True, {"strategy": "distill", "distill": {"teacher": "./teacher", "apply_to": "task"}}
    ),
    "lora-distill-both": lambda name: training(
        name, True, {"strategy": "replay+distill", "distill": {"apply_to": "both"}}
    ),
    "lora-checkpointing": lambda name: training(name, True, enable_gradient_checkpointing=True),
    "lora-auto": lambda name: training(name, True, batch_size="auto", effective_batch_size=8),
    "lora-accumulate": lambda name: training(name, True, batch_size=2, gradient_accumulation_steps=2),
    "lora-run": lambda name: whole_run(name, True),
    "full-run": lambda name: whole_run(name, False),
    "lora-resumed": lambda name: resumed(name, True),
    "full-resumed": lambda name: resumed(name, False),
    "gpu-lora": gpu_lora_step,
    "gpu-lora-dense": lambda name: gpu_lora_step(name, attention="dense"),
    "gpu-lora-8-layers-4-rows": lambda name: gpu_lora_step(name, 8, batch_size=4),
    "gpu-lora-8-layers-16-rows": lambda name: gpu_lora_step(name, 8),
}

CASES_BY_MACHINE = {
    "a100": list(CASES),
    "t4": [
        *(f"lora-{strategy}" for strategy in ("none", "si", "ewc", "replay+distill", "interpolate")),
        *("lora-teacher", "lora-auto", "lora-run", "lora-resumed", "full-replay+distill", "full-resumed", "gpu-lora"),
    ],
    "apple": ["lora-none", "lora-replay+distill", "lora-auto", "lora-run", "lora-resumed", "full-ewc", "gpu-lora"],
}
"""The cases that are run on each machine: all on one, and what depends on precision and attention on the others."""

ON_REQUEST: dict[str, Callable[[str], Run]] = {
    "gpu-lora-loop": lambda name: gpu_lora_step(name, attention="loop"),
}
"""Cases for the comparison in docs/speed.md; the loop is the path of a CPU."""


@contextmanager
def counted_steps() -> Iterator[None]:
    """Records the counts from the start of each training step to its end, in Ludwig's loop."""
    on_batch_start, on_batch_end = LudwigCallback.on_batch_start, LudwigCallback.on_batch_end

    def start(self: LudwigCallback, *args: Any) -> None:
        on_batch_start(self, *args)
        COUNTS.clear()

    def end(self: LudwigCallback, *args: Any, **kwargs: Any) -> None:
        waits = {f"{operator} at {place}": number for (operator, place), number in COUNTS.waits.items()}
        STEPS.append({"kernels": dict(COUNTS.kernels), "waits": waits, "copies": dict(COUNTS.copies)})
        on_batch_end(self, *args, **kwargs)

    with mock.patch.multiple(LudwigCallback, on_batch_start=start, on_batch_end=end):
        yield


def run_case(name: str) -> dict[str, Any]:
    STEPS.clear()
    try:
        with pretend_device():
            run = (CASES | ON_REQUEST)[name](name)
    except Exception as error:  # the test shows it
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(), "steps": []}
    history = json.loads(run.path("model", "training.json").read_text())
    losses = [entry["loss"] for entry in history["train_loss"]]
    return {"error": None, "steps": list(STEPS), "losses": losses}


def main() -> None:
    folder, machine = Path(sys.argv[1]).resolve(), sys.argv[2]
    names = sys.argv[3:] or CASES_BY_MACHINE[machine]
    torch.set_num_threads(1)
    os.environ |= {"ALFINE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    os.chdir(folder)
    install_in_alfine(machine)
    write_project()
    results = {}
    bundled = mock.patch("pipelines.forgetting.context.bundled_file", lambda name: folder / "bundled" / name)
    with bundled, counted_steps():
        for name in names:
            results[name] = run_case(name)
            (folder / "results.json").write_text(json.dumps(results))
            if steps := results[name]["steps"]:
                kernels, waits = (sum(steps[-1][key].values()) for key in ("kernels", "waits"))
                print(f"{name}: {kernels} kernels, {waits} waits in the last of {len(steps)} steps", flush=True)


if __name__ == "__main__":
    main()
