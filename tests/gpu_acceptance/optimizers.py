"""Every optimizer that a config may name: constructed, stepped, saved, loaded."""

from __future__ import annotations

import json
import math
import time

from pipelines.config.schema import ludwig_fields
from tests.gpu_acceptance.jobs import losses, make_job
from tests.gpu_acceptance.models import saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check
from tests.gpu_acceptance.resume import interrupt_and_resume

IN_DRY_RUN = ("adamw", "lion", "adagrad")
BUDGET = 60.0
"""Seconds, so that the checks after this one have some left."""


def optimizer_names() -> list[str]:
    """The optimizers of the schema, the most used first."""
    names = list(json.loads(json.dumps(ludwig_fields()))["trainer"]["fields"]["optimizer"]["variants"])
    first = ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw", "lion_8bit", "adagrad", "adafactor", "muon"]
    return [*first, *(name for name in names if name not in first)]


@check(1, 20, at_most("failures", 0, portable=True), at_least("tried", 2, portable=True))
def every_optimizer(context: Context) -> Measurements:
    """A LoRA training of six steps with each optimizer, interrupted after step 3 and resumed from its checkpoint. A
    config that refuses an optimizer with a message is listed, not counted as a failure; so is what no time is left for."""
    model, failed, refused, not_tried, tried = saved_model("small", context), [], [], [], 0
    started = time.monotonic()
    for name in optimizer_names() if context.is_gpu else IN_DRY_RUN:
        if context.is_gpu and min(BUDGET - (time.monotonic() - started), context.seconds_left) < 10:
            not_tried.append(name)
            continue
        try:
            job, run = make_job(context, f"optimizer_{name}", model, optimizer={"type": name}, steps_per_checkpoint=2)
        except Exception as error:  # ConfigError for optimizers that are refused; anything else shows in the text
            refused.append(f"{name}: {str(error)[:200]}")
            continue
        tried += 1
        try:
            history = interrupt_and_resume(job, run, model, stop_after=3)
            if not all(math.isfinite(loss) for loss in losses(history)):
                failed.append(f"{name}: losses {losses(history)}")
        except Exception as error:  # every optimizer is tried
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        context.record(name, {"failures": len(failed)})
    return {"failures": len(failed), "failed": failed, "refused": refused, "not_tried": not_tried, "tried": tried}
