"""A training that is interrupted and resumed against one that is not."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.gpu_acceptance.jobs import LORA, final_weights, losses, make_job, relative_error, train_job
from tests.gpu_acceptance.models import saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_most, check

STOP_AFTER = 5


def interrupt_and_resume(job: Any, run: Run, model: Any, stop_after: int = STOP_AFTER) -> dict[str, Any]:
    """Trains to `stop_after` steps, then resumes to the end. Returns the history. Raises RuntimeError without a stop."""

    def stop(done: int, total: int, loss: float | None) -> None:
        if done == stop_after and loss is not None:
            raise KeyboardInterrupt

    try:
        train(job, run, model, stop)
    except KeyboardInterrupt:
        return train_job(job, run, model)
    raise RuntimeError(f"the training ended before step {stop_after}")


@check(
    1,
    25,
    at_most("weight_error_lora", 1e-3, portable=True),
    at_most("weight_error_full", 1e-3, portable=True),
)
def resumed_training(context: Context) -> Measurements:
    """Two epochs, interrupted after step 5 and resumed, against the same training without interrupt: relative
    difference of the final weights (0 is bitwise equal), with LoRA and dropout, and of all weights with EWC."""
    model, measurements, same = saved_model("small", context), {}, True
    dropout = {**LORA, "dropout": 0.1}
    for name, adapter, forgetting in (("lora", dropout, "none"), ("full", None, "ewc")):
        settings: dict[str, Any] = {
            "epochs": 2,
            "steps_per_checkpoint": 2,
            "learning_rate_scheduler": {"decay": "linear"},
            "adapter": adapter,
            "forgetting": forgetting,
        }
        job, run = make_job(context, f"resume_{name}", model, **settings)
        second = Run(run.folder.with_name("second"))
        shutil.copytree(run.path("data"), second.path("data"))
        uninterrupted = train_job(job, run, model)
        resumed = interrupt_and_resume(job, second, model)
        weights = final_weights(run), final_weights(second)
        measurements[f"weight_error_{name}"] = relative_error(weights[1], weights[0])
        equal = all(torch.equal(weights[1][key], value) for key, value in weights[0].items())
        measurements[f"bitwise_equal_{name}"] = int(equal)
        same = same and losses(uninterrupted) == losses(resumed)
    return {**measurements, "same_losses": int(same)}
