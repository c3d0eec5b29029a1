"""Training steps against plain Hugging Face code, and a whole run with its report."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.config.job import load_job
from pipelines.data.mixing import sample_epoch
from pipelines.data.tokenize_rows import open_split
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.run import run_job
from pipelines.storage.run_folder import Run
from tests.gpu_acceptance.jobs import (
    LORA,
    WORDS,
    final_weights,
    losses,
    make_job,
    relative_error,
    short_pairs,
    train_job,
)
from tests.gpu_acceptance.models import ALL_MATRICES, saved_model, texts_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check
from tests.jobs import QUIET

STEPS, RATE, CLIP = 3, 0.05, 0.5


@contextlib.contextmanager
def first_weights() -> Iterator[dict[str, torch.Tensor]]:
    """Copies of the trained weights before the first step; the block trains. A new adapter's weights are random."""
    from pipelines.training.trainer import FineTuneTrainer  # Ludwig: 10 s that the other checks do not need

    weights: dict[str, torch.Tensor] = {}
    train_step = FineTuneTrainer.train_step

    def train_step_with_copy(self: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        if not weights:
            parameters = self.model.model.named_parameters()
            weights.update({name: weight.detach().clone() for name, weight in parameters if weight.requires_grad})
        return train_step(self, inputs, *arguments, **keywords)

    FineTuneTrainer.train_step = train_step_with_copy  # type: ignore[method-assign]
    try:
        yield weights
    finally:
        FineTuneTrainer.train_step = train_step  # type: ignore[method-assign]


def padded_batch_loss(model: Any, rows: TokenSequences, device: str) -> torch.Tensor:
    """Right padding, an attention mask, -100 labels, and the mean over the supervised tokens."""
    width = max(map(len, rows.input_ids))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, (row, spans) in enumerate(zip(rows.input_ids, rows.supervised_spans, strict=True)):
        tokens = torch.from_numpy(row.astype(np.int64))
        ids[index, : len(row)], mask[index, : len(row)] = tokens, 1
        for start, end in spans:
            labels[index, start:end] = tokens[start:end]
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
    targets = labels[:, 1:].reshape(-1).to(device)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, ignore_index=-100)


@check(
    1,
    20,
    at_most("loss_error", 5e-3, portable=True),
    at_most("update_error_lora", 0.05, portable=True),
    at_most("update_error_full", 0.05, portable=True),
)
def steps_equal_hugging_face(context: Context) -> Measurements:
    """Three steps with LoRA and of all weights against a padded Hugging Face loop in fp32: the largest relative error
    of a loss, and ‖difference‖ / ‖change of the weights‖ after the steps."""
    errors: Measurements = {"loss_error": 0.0}
    for name, adapter in (("lora", LORA), ("full", None)):
        model = saved_model("small", context)
        settings: dict[str, Any] = {
            "adapter": adapter,
            "learning_rate": RATE,
            "validation": 0,
            "optimizer": {"type": "sgd"},
            "gradient_clipping": {"clipglobalnorm": CLIP},
        }
        job, run = make_job(context, f"steps_{name}", model, short_pairs(6 * STEPS), **settings)
        with first_weights() as initial:
            history = train_job(job, run, model)
        expected_losses, expected = _plain_steps(model, adapter, initial, run, context.device)
        loss_errors = [abs(a - b) / b for a, b in zip(losses(history), expected_losses, strict=True)]
        errors["loss_error"] = max(errors["loss_error"], *loss_errors)
        saved = final_weights(run)
        start = {_saved_name(key, adapter): value.cpu().float() for key, value in initial.items()}
        changes = {key: saved[key].float() - start[key] for key in expected if key in saved}
        expected_changes = {key: expected[key] - start[key] for key in changes}
        errors[f"update_error_{name}"] = relative_error(changes, expected_changes)
        errors[f"weights_compared_{name}"] = len(changes)
    return errors


def _saved_name(name: str, adapter: Any) -> str:
    return name.replace(".default.weight", ".weight") if adapter else name


def _plain_steps(
    folder: Path, adapter: Any, initial: dict[str, torch.Tensor], run: Run, device: str
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of plain steps and the trained weights after them, by their names in the saved file."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device)
    if adapter:
        config = LoraConfig(
            r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=ALL_MATRICES, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, config)
        model.load_state_dict(initial, strict=False)
    data = TokenDataset.from_table(open_split(run.path("data"), "train"))
    order = sample_epoch(data.tasks, {"t": 1.0}, 3, 0, True)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=RATE)
    step_losses = []
    for step in range(STEPS):
        loss = padded_batch_loss(model, data.sequences.select(order[6 * step : 6 * step + 6]), device)
        step_losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return step_losses, {_saved_name(name, adapter): weight.detach().cpu() for name, weight in trained.items()}


EVAL_ROWS: dict[str, list[dict[str, Any]]] = {
    "multiple_choice": [
        {"question": f"The inn {n}?", "choices": ["tea", "a gate", "thin ice"], "answer": n % 3, "topic": "x"}
        for n in range(6)
    ],
    "text_nll": [{"text": f"In the inn at nine, {n} gates."} for n in range(4)],
    "kl": [{"instruction": f"Say {n}."} for n in range(3)],
}


@check(1, 30, at_least("report_files", 3, portable=True), at_least("tasks_scored", 2, portable=True))
def whole_run(context: Context) -> Measurements:
    """`alfine run` with two tasks, strategy auto and three kinds of retention evals, to the report."""
    folder = context.folder / "whole_run"
    folder.mkdir(parents=True, exist_ok=True)
    evals = {kind: {"kind": kind, "data": str(folder / f"{kind}.jsonl")} for kind in EVAL_ROWS}
    splits = ["train", "train", "validation", "test"]
    files = {
        **EVAL_ROWS,
        "odd": [{"p": f"is {n} odd", "c": ["no", "yes"][n // 4 % 2], "split": splits[n % 4]} for n in range(40)],
        "say": [{"p": f"say {WORDS[n % 6]} {n}", "c": WORDS[n % 6], "split": splits[n % 4]} for n in range(40)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = {
        name: {
            "data": str(folder / f"{name}.jsonl"),
            "prompt": "{p}?",
            "completion": "{c}",
            "metric": metric,
            "max_new_tokens": 8,
        }
        for name, metric in (("odd", "exact_match"), ("say", "chrf"))
    }
    config = {
        "pipeline": {
            "tasks": tasks,
            "chat_template": False,
            "forgetting": {"strategy": "auto", "evals": evals, "eval_steps": 3},
        },
        "base_model": str(texts_model(context)),
        "adapter": LORA,
        "trainer": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-4},
    }
    (folder / "job.yaml").write_text(json.dumps(config), encoding="utf-8")
    run = Run(folder / "runs" / f"one_{os.getpid()}")
    run_job(load_job(folder / "job.yaml"), run, "alfine run job.yaml", QUIET)
    report = json.loads(run.path("report.json").read_text(encoding="utf-8"))
    history = json.loads(run.path("model", "training.json").read_text(encoding="utf-8"))
    return {
        "report_files": sum(run.path(name).exists() for name in ("report.json", "report.html", "report.md")),
        "tasks_scored": len(report["tasks"]),
        "finite_losses": all(math.isfinite(loss) for loss in losses(history)),
        "hardware": report.get("hardware") or run.manifest.get("hardware"),
    }
