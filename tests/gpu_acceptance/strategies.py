"""Every strategy against forgetting in one short training."""

from __future__ import annotations

import math
from typing import Any

from tests.gpu_acceptance.jobs import LORA, losses, make_job, train_job
from tests.gpu_acceptance.models import saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_most, check

STRATEGIES = ("none", "ewc", "si", "l2sp", "replay", "distill", "replay+distill", "interpolate")


@check(1, 45, at_most("failures", 0, portable=True))
def every_strategy(context: Context) -> Measurements:
    """One epoch with each strategy under LoRA, with a teacher, and of all weights: final losses; a non-finite loss or
    an exception is a failure."""
    model, teacher = saved_model("small", context), saved_model("small", context, seed=5)
    cases: dict[str, tuple[Any, Any]] = {name: (LORA, name) for name in STRATEGIES}
    cases["teacher"] = (LORA, {"strategy": "distill", "distill": {"teacher": str(teacher), "apply_to": "task"}})
    cases["full"] = (None, "none")
    cases["full ewc+si+l2sp"] = (None, "ewc+si+l2sp")
    cases["full replay+distill"] = (None, "replay+distill")
    final: Measurements = {}
    failed: list[str] = []
    for name, (adapter, forgetting) in cases.items():
        try:
            folder = f"strategy_{name}".replace(" ", "_")
            job, run = make_job(context, folder, model, adapter=adapter, forgetting=forgetting)
            final[name] = losses(train_job(job, run, model))[-1]
            if not math.isfinite(final[name]):
                failed.append(f"{name}: loss {final[name]}")
        except Exception as error:  # every strategy is tried
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    return {"failures": len(failed), "failed": failed, "final_losses": final}
