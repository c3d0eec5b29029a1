"""Rates measured on this machine: a few training steps, passes and completions with the job's model and lengths.

The step has the parts that cost time in a training: the packed forward and backward pass with the adapter, and the
optimizer. Ludwig's loop around it is not needed for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from pipelines.checks.hardware import configure_hardware
from pipelines.config.job import Job
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.modeling.base_models import ensure_base_model
from pipelines.modeling.hardware import current_hardware
from pipelines.modeling.packing import sequence_mean_losses_of_batch, token_losses
from pipelines.modeling.prefix_tree import build_prefix_tree
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.planning.duration import Rates
from pipelines.planning.token_lengths import ExampleTokens

REPETITIONS = 3
MAX_STEP_ROWS = 16
"""Rows of the timed step: rates of larger ones are about the same."""
NUM_PROMPTS, NEW_TOKENS = 32, 32


def measure_rates(job: Job, rows: Sequence[ExampleTokens], rows_per_step: int) -> Rates:
    """Times steps over `rows`, which are tokenized rows of the job. Raises MachineError and ModelError."""
    configure_hardware(job)
    loaded = LoadedModel.from_folder(ensure_base_model(job.base_model), job.chat_template_settings(), job.quantization)
    count = min(rows_per_step, MAX_STEP_ROWS, len(rows))
    batches = [
        _sequences([rows[(start * count + index) % len(rows)] for index in range(count)])
        for start in range(REPETITIONS + 1)
    ]
    prompts = [list(row.ids[: row.prompt]) for row in rows[:NUM_PROMPTS]]
    forward = _rate(batches, lambda batch: sequence_mean_losses_of_batch(loaded.model, batch))
    complete(loaded, prompts[:1], {"do_sample": False}, [1])  # how to decode is tried once
    started = time.perf_counter()
    completions = complete(loaded, prompts, {"do_sample": False}, [NEW_TOKENS] * len(prompts))
    seconds = time.perf_counter() - started - sum(map(len, prompts)) / forward
    decoding = sum(completion.num_generated_tokens for completion in completions) / max(seconds, 1e-3)
    return Rates(_training_rate(job, loaded.model, batches), forward, decoding, is_measured=True)


def _training_rate(job: Job, model: torch.nn.Module, batches: list[TokenSequences]) -> float:
    """Computed tokens per second of optimizer steps, in micro-batches of the job's size."""
    adapter = job.adapter
    if adapter is not None:
        targets = adapter.get("target_modules") or None
        # Other adapter types cost about as much as LoRA of their rank.
        model = get_peft_model(
            model, LoraConfig(r=int(adapter.get("r") or 8), target_modules=targets, task_type="CAUSAL_LM")
        )
    else:
        model.requires_grad_(True)
    if job.trainer.get("enable_gradient_checkpointing"):
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)
    size = job.trainer["batch_size"]

    def step(batch: TokenSequences) -> None:
        rows = len(batch) if size == "auto" else int(size)
        for start in range(0, len(batch), rows):
            token_losses(model, batch[start : start + rows]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return _rate(batches, step)


def _sequences(rows: Sequence[ExampleTokens]) -> TokenSequences:
    ids = [np.asarray(row.ids, dtype=np.int32) for row in rows]
    return TokenSequences.supervised_from(ids, [min(row.prompt, len(row.ids) - 1) for row in rows])


def _rate(batches: Sequence[TokenSequences], compute: Callable[[TokenSequences], object]) -> float:
    """Computed tokens per second; the first batch is not timed."""
    compute(batches[0])
    _synchronize()
    started = time.perf_counter()
    for batch in batches[1:]:
        compute(batch)
    _synchronize()
    tokens = sum(sum(build_prefix_tree(batch.input_ids).lengths) for batch in batches[1:])
    return tokens / (time.perf_counter() - started)


def _synchronize() -> None:
    device = current_hardware().device
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
