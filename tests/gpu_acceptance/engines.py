"""One engine in a process of its own: it imports its packages, waits for a line on standard input, then trains.

    python -m tests.gpu_acceptance.engines ENGINE MODEL FOLDER WORKLOAD[,WORKLOAD…] [--tiny]

Prints "ready" once everything is imported, then one line of JSON per workload. So several processes may import at
once, and train in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.gpu_acceptance.clock import StepClock, train_until_measured
from tests.gpu_acceptance.jobs import Pair, make_job
from tests.gpu_acceptance.models import ALL_MATRICES
from tests.gpu_acceptance.registry import Context
from tests.gpu_acceptance.workloads import RANK, Workload

RATE = 2e-4
MAX_LENGTH = 8192


def alfine(model: Path, folder: Path, pairs: list[Pair], workload: Workload, rows: int) -> StepClock:
    """The trainer of this project, with its defaults."""
    clock = StepClock(workload)
    context = Context("cuda" if torch.cuda.is_available() else "cpu", folder)
    adapter = {"type": "lora", "r": RANK, "alpha": 2 * RANK, "dropout": 0.0, "target_modules": ALL_MATRICES}
    settings: dict[str, Any] = {"adapter": adapter, "validation": 0, "batch_size": workload.rows, "learning_rate": RATE}
    job, run = make_job(context, f"alfine_{workload.name}", model, pairs, **settings)
    clock.measurements["loss"] = train_until_measured(job, run, model, clock)
    return clock


def ludwig(model: Path, folder: Path, pairs: list[Pair], workload: Workload, rows: int) -> StepClock:
    """Ludwig as it is, with `rows` rows per backward pass."""
    import pandas as pd
    from ludwig.api import LudwigModel
    from ludwig.callbacks import Callback

    clock = StepClock(workload)

    class Clock(Callback):
        def on_batch_end(self, *_: Any, **__: Any) -> None:
            clock.after_step()
            if clock.is_done:
                raise StopTraining

    config = {
        "model_type": "llm",
        "base_model": str(model),
        "input_features": [{"name": "p", "type": "text", "preprocessing": {"max_sequence_length": MAX_LENGTH}}],
        "output_features": [{"name": "c", "type": "text", "preprocessing": {"max_sequence_length": MAX_LENGTH}}],
        "preprocessing": {"global_max_sequence_length": MAX_LENGTH, "split": {"type": "fixed"}},
        "adapter": {
            "type": "lora",
            "r": RANK,
            "alpha": 2 * RANK,
            "dropout": 0.0,
            "target_modules": ALL_MATRICES,
        },
        "trainer": {
            "type": "finetune",
            "epochs": 1,
            "batch_size": rows,
            "learning_rate": RATE,
            "skip_all_evaluation": True,
        },
        "backend": {"type": "local"},
    }
    frame = pd.DataFrame(pairs, columns=["p", "c"]).assign(split=0)
    stock = LudwigModel(config, callbacks=[Clock()], logging_level=logging.ERROR)
    with contextlib.suppress(StopTraining):
        stock.train(
            dataset=frame,
            output_directory=tempfile.mkdtemp(dir=folder),
            skip_save_processed_input=True,
            skip_save_progress=True,
            skip_save_log=True,
            skip_save_model=True,
        )
    clock.measurements["is_one_pass"] = True
    return clock


class StopTraining(Exception):
    """Enough steps are measured."""


def trl(model: Path, folder: Path, pairs: list[Pair], workload: Workload, rows: int, **settings: Any) -> StepClock:
    """TRL in bf16, without gradient checkpointing, `rows` rows per backward pass."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock, cuda = StepClock(workload), torch.cuda.is_available()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.after_step()

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(dir=folder),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=workload.rows // rows,
        num_train_epochs=1,
        learning_rate=RATE,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=False,
        **{"max_length": MAX_LENGTH, **settings},
    )
    dtype = torch.bfloat16 if cuda else torch.float32
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa"),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]}),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=ALL_MATRICES, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return clock


def trl_liger(*arguments: Any) -> StepClock:
    """TRL with Liger's kernels."""
    return trl(*arguments, use_liger_kernel=True)


def trl_padding_free(*arguments: Any) -> StepClock:
    """TRL with the rows of a pass in one sequence. transformers keeps them apart by a mask from their positions."""
    return trl(*arguments, padding_free=True, max_length=None)


ENGINES: dict[str, Callable[..., StepClock]] = {
    "alfine": alfine,
    "trl": trl,
    "trl_liger": trl_liger,
    "trl_padding_free": trl_padding_free,
    "ludwig": ludwig,
}


def import_packages(engine: str) -> None:
    if engine in ("alfine", "ludwig"):
        import ludwig.api  # noqa: F401

        import pipelines.training.ludwig_training  # noqa: F401
    else:
        import trl  # noqa: F401


def measure(engine: str, model: Path, folder: Path, workload: Workload, tiny: bool) -> dict[str, Any]:
    """Trains; if memory runs out, with half as many rows per backward pass."""
    rows, pairs = workload.rows, workload.pairs(tiny)
    while True:
        try:
            started = time.perf_counter()
            clock = ENGINES[engine](model, folder, pairs, workload, rows)
            clock.measurements |= {"rows_per_pass": rows, "total_seconds": time.perf_counter() - started}
            return clock.measurements
        except torch.OutOfMemoryError:
            if rows == 1:
                return {"error": "out of memory with one row"}
        except Exception as error:  # becomes a result of this engine
            trace = traceback.format_exc().splitlines()[-6:]
            return {"error": f"{type(error).__name__}: {str(error)[:400]}", "trace": trace}
        rows //= 2
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run(arguments)


def run(arguments: argparse.Namespace | SimpleNamespace) -> None:
    from tests.gpu_acceptance.workloads import WORKLOADS

    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the engines print
    logging.disable(logging.WARNING)
    import_packages(arguments.engine)
    print("ready", file=results, flush=True)
    sys.stdin.readline()
    for name in arguments.workloads.split(","):
        measured = measure(arguments.engine, arguments.model, arguments.folder, WORKLOADS[name], arguments.tiny)
        print(json.dumps({"workload": name, **measured}, default=str), file=results, flush=True)


if __name__ == "__main__":
    main()
