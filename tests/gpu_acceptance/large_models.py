"""Full fine-tuning of 1.5B, LoRA and QLoRA of 7B: seconds and peak memory of a step."""

from __future__ import annotations

import shutil
from typing import Any

from tests.gpu_acceptance.clock import StepClock, train_until_measured
from tests.gpu_acceptance.jobs import make_job
from tests.gpu_acceptance.memory import FOUR_BITS
from tests.gpu_acceptance.models import ALL_MATRICES, saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check
from tests.gpu_acceptance.results import free_memory
from tests.gpu_acceptance.workloads import RANK, Workload

ADAPTER = {"type": "lora", "r": RANK, "alpha": 2 * RANK, "dropout": 0.0, "target_modules": ALL_MATRICES}


def measure_step(context: Context, name: str, model_name: str, workload: Workload, **settings: Any) -> Measurements:
    """Seconds and peak memory of a step, kernels launched, and host waits."""
    clock, model = StepClock(workload), saved_model(model_name, context)
    free_memory()
    pairs = workload.pairs(not context.is_gpu)
    job, run = make_job(
        context, name, model, pairs, validation=0, batch_size=workload.rows, learning_rate=1e-5, **settings
    )
    clock.measurements["loss"] = train_until_measured(job, run, model, clock)
    shutil.rmtree(run.folder, ignore_errors=True)
    context.record(name, clock.measurements)
    free_memory()
    return {key: value for key, value in clock.measurements.items() if key != "top_kernels"}


LONG = Workload("2048", rows=4, length=2048, supervised=1024, shared=0, warmup=2, measured=3)
SHORT = Workload("short", rows=16, length=60, supervised=16, shared=20, warmup=6, measured=6)
QUANTIZED: dict[str, Any] = {
    "adapter": ADAPTER,
    "config": {"quantization": FOUR_BITS},
    "enable_gradient_checkpointing": True,
}


@check(3, 60, at_most("peak_gib", 24.0), at_least("seconds", 0.0), needs_gpu=True)
def qlora_7b(context: Context) -> Measurements:
    """QLoRA (4 bits, gradient checkpointing) of 7B, 4 rows of 2,048 tokens per step."""
    return measure_step(context, "qlora_7b", "7b", LONG, **QUANTIZED)


@check(3, 45, at_most("peak_gib", 78.0), at_least("seconds", 0.0, portable=True))
def lora_7b(context: Context) -> Measurements:
    """LoRA (bf16) of 7B, 4 rows of 2,048 tokens per step."""
    return measure_step(context, "lora_7b", "7b", LONG, adapter=ADAPTER)


@check(3, 35, at_most("peak_gib", 78.0), at_least("seconds", 0.0, portable=True))
def full_fine_tuning_1_5b(context: Context) -> Measurements:
    """All weights of 1.5B, AdamW, 4 rows of 2,048 tokens per step."""
    return measure_step(context, "full_1_5b", "1.5b", LONG, adapter=None)


@check(3, 25, at_most("peak_gib", 24.0), at_least("seconds", 0.0), needs_gpu=True)
def qlora_7b_short_rows(context: Context) -> Measurements:
    """QLoRA of 7B, 16 rows of about 60 tokens per step."""
    return measure_step(context, "qlora_7b_short", "7b", SHORT, **QUANTIZED)
