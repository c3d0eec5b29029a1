"""QLoRA, running out of memory, and the peak of memory at the end of full fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipelines.errors import MachineError
from tests.gpu_acceptance.jobs import final_weights, losses, make_job, train_job
from tests.gpu_acceptance.models import saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check
from tests.gpu_acceptance.workloads import Workload

FOUR_BITS = {"bits": 4, "bnb_4bit_compute_dtype": "bfloat16"}


@check(1, 20, at_most("failures", 0), at_least("loss_decrease", 0.0), needs_gpu=True)
def qlora(context: Context) -> Measurements:
    """4-bit base weights with gradient checkpointing: one training without and two with a strategy."""
    model, failed, histories = saved_model("small", context), [], {}
    for forgetting in ("none", "replay+distill", "interpolate"):
        try:
            job, run = make_job(
                context,
                f"qlora_{forgetting}",
                model,
                forgetting=forgetting,
                config={"quantization": FOUR_BITS},
                enable_gradient_checkpointing=True,
                epochs=2,
            )
            histories[forgetting] = losses(train_job(job, run, model))
            if not all(math.isfinite(loss) for loss in histories[forgetting]):
                failed.append(f"{forgetting}: losses {histories[forgetting]}")
        except Exception as error:  # every strategy is tried
            failed.append(f"{forgetting}: {type(error).__name__}: {str(error)[:300]}")
    plain = histories.get("none", [math.nan])
    return {"failures": len(failed), "failed": failed, "loss_decrease": plain[0] - plain[-1], "first_loss": plain[0]}


@check(1, 30, at_least("steps_done", 2), at_least("one_line_error", 1), needs_gpu=True)
def out_of_memory(context: Context) -> Measurements:
    """Memory limited above what is in use: with 9 GiB a step of 32 rows of 4,000 tokens is split; with 1.5 GiB a single
    row does not fit, which ends with an error of one line."""
    model, total = saved_model("135m", context), torch.cuda.get_device_properties(0).total_memory
    pairs = Workload("memory", rows=32, length=4000, supervised=100, shared=0, warmup=0, measured=0).pairs(tiny=False)
    measurements: Measurements = {}
    try:
        for name, limit, count in (("split", 9.0, 64), ("too_long", 1.5, 4)):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + limit * 2**30) / total)
            job, run = make_job(
                context, f"memory_{name}", model, pairs[:count], validation=1, batch_size=min(count, 32)
            )
            try:
                history = train_job(job, run, model)
                measurements |= {f"micro_batch_{name}": history.get("micro_batch"), "steps_done": len(losses(history))}
            except MachineError as error:
                measurements[f"error_{name}"] = str(error)
        measurements["one_line_error"] = int("\n" not in measurements.get("error_too_long", "\n"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return measurements


@check(1, 30, at_most("end_over_steps", 1.05), at_least("trained_tensors", 1, portable=True))
def full_fine_tuning_peak(context: Context) -> Measurements:
    """Full fine-tuning of 135 million weights: the peak of memory from the end of the last step on (best checkpoint,
    export) over the peak during the steps."""
    model = saved_model("135m", context)
    peaks: dict[str, float] = {"steps": 0.0}

    def after_step(done: int, total: int, loss: float | None) -> None:
        if context.is_gpu and done == total:
            peaks["steps"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()

    if context.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    settings: dict[str, Any] = {"adapter": None, "learning_rate": 1e-4}
    job, run = make_job(context, "full_peak", model, **settings)
    train_job(job, run, model, after_step)
    end = torch.cuda.max_memory_allocated() / 2**30 if context.is_gpu else 0.0
    return {
        "peak_steps_gib": peaks["steps"],
        "peak_end_gib": end,
        "end_over_steps": end / peaks["steps"] if peaks["steps"] else None,
        "trained_tensors": len(final_weights(run)),
    }
