"""The time of a job by stage: tokens divided by rates.

Rates come from `calibration` where it has run, otherwise from the data sheet of the device and the utilization that
benchmarks of this project have measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config.job import Job
from pipelines.data.splits import MAX_CANDIDATES
from pipelines.planning.memory import FP32, MAX_PROMPTS, MemoryPlan
from pipelines.planning.model_shape import ModelShape
from pipelines.planning.target_hardware import TargetHardware
from pipelines.planning.workload import PREFILL_TOKENS, Workload

UTILIZATION = {"cpu": 0.45, "cuda": 0.35, "mps": 0.3}
"""Share of the peak that a training step reaches: docs/speed.md and docs/gpu."""
DECODING_UTILIZATION = {"cpu": 0.2, "cuda": 0.1, "mps": 0.1}
"""The same while tokens are generated in batches."""
STEP_OVERHEAD = {"cpu": 0.01, "cuda": 0.02, "mps": 0.03}
"""Seconds of a pass that do not depend on its size: Python and kernel launches."""
START_SECONDS = {"cpu": 13.0, "cuda": 40.0, "mps": 13.0}
"""Imports of torch and Ludwig, loading of the model, export."""
SAVED_BYTES_PER_SECOND = 0.35e9
"""Bytes of checkpoints that are hashed and written (`tests.benchmarks.plans --jobs full`, two cores)."""
EXPORTED_COPIES = 3
"""Copies of the trained weights that are read and written after the last step: the best, Ludwig's and the run's."""
ROWS_PER_SECOND = 5000
"""Rows that are rendered and tokenized, docs/speed.md."""
BUNDLED_EVAL_TOKENS, BUNDLED_EVAL_GENERATED = 52_000, 64 * 96
"""Tokens of the bundled retention evals, and those that their instructions let a model generate."""
GENERAL_ANSWERS, GENERAL_ANSWER_TOKENS = 200, 96
"""Answers that the starting model gives for replay and distillation, and their length."""


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes:
        training: computed tokens per second of a training step.
        forward: tokens per second of passes without gradients.
        decoding: generated tokens per second in a batch of many prompts.
        is_measured: whether the rates were measured on this machine with this model.
    """

    training: float
    forward: float
    decoding: float
    is_measured: bool = False


@dataclass(frozen=True)
class Duration:
    """Seconds by stage."""

    stages: dict[str, float]
    rates: Rates

    @property
    def total(self) -> float:
        return sum(self.stages.values())


def estimate_rates(job: Job, model: ModelShape, hardware: TargetHardware) -> Rates:
    """Rates from the peak of the device.

    A pass takes 2 operations per weight and token; the backward pass as many for the activations, and as many again if
    every weight is trained (Kaplan et al. 2020, arXiv:2001.08361, 2.1).
    """
    per_token = 2.0 * model.active_parameters
    flops = hardware.flops * UTILIZATION[hardware.device]
    passes = 2 if job.adapter is not None else 3
    if job.trainer.get("enable_gradient_checkpointing"):
        passes += 1
    weight_bytes = model.active_parameters * hardware.bytes_per_value
    step = max(
        weight_bytes / hardware.bandwidth,
        MAX_PROMPTS / 4 * per_token / (hardware.flops * DECODING_UTILIZATION[hardware.device]),
    )
    decoding = (MAX_PROMPTS / 4) / (step + STEP_OVERHEAD[hardware.device])
    return Rates(flops / (passes * per_token), flops / per_token, decoding)


def estimate_duration(
    job: Job, memory: MemoryPlan, workload: Workload, hardware: TargetHardware, rates: Rates
) -> Duration:
    """The time of every stage. The base answers up to the limit of each task, the tuned model as long as references."""
    sharing = workload.sharing
    test = [task for task in workload.tasks if task.evaluated["test"]]
    prompt_tokens = sum(task.evaluated["test"] * task.tokens for task in test) * sharing
    base_generated = sum(task.evaluated["test"] * task.limit for task in test)
    tuned_generated = sum(task.evaluated["test"] * min(task.tokens - task.prompt + 1, task.limit) for task in test)
    validation = sum(task.evaluated["validation"] * task.tokens for task in workload.tasks) * sharing
    steps = workload.steps.total
    checkpoints = steps // max(workload.steps.per_evaluation, 1)
    saved = _saved_bytes(memory, checkpoints) / SAVED_BYTES_PER_SECOND
    start = START_SECONDS[hardware.device]
    training = steps * workload.step_tokens / rates.training + steps * STEP_OVERHEAD[hardware.device]
    strategies = set(job.pipeline.forgetting.strategies)
    if strategies & {"replay", "distill"}:
        # General rows: their answers before the training, and two more passes over a tenth of the tokens.
        training += GENERAL_ANSWERS * GENERAL_ANSWER_TOKENS / rates.decoding + 0.5 * training
    if strategies & {"ewc", "si"}:
        training *= 1.3
    retention = 0.0
    if job.pipeline.forgetting.eval_names:
        retention = BUNDLED_EVAL_TOKENS / rates.forward + BUNDLED_EVAL_GENERATED / rates.decoding
    rows = sum(workload.total(split) for split in ("train", "validation", "test"))
    stages = {
        "prepare": rows / ROWS_PER_SECOND + 2,
        "eval_base": prompt_tokens / rates.forward + base_generated / rates.decoding + start / 5,
        "eval_few_shot": _few_shot_seconds(job, workload, hardware, rates),
        "eval_base_retention": retention,
        "train": training + (1 + checkpoints) * validation / rates.forward + start + saved,
        "eval_tuned": prompt_tokens / rates.forward + tuned_generated / rates.decoding + start / 5,
        "eval_tuned_retention": retention,
    }
    return Duration(stages, rates)


def _saved_bytes(memory: MemoryPlan, checkpoints: int) -> float:
    """The bytes of the checkpoints, of the best weights beside them, and of the tuned model."""
    weights = FP32 * memory.trainable_parameters
    return checkpoints * (2 * weights + memory.training["optimizer state"]) + EXPORTED_COPIES * weights


def _few_shot_seconds(job: Job, workload: Workload, hardware: TargetHardware, rates: Rates) -> float:
    """The time of the base with examples in its prompt, which is loaded already.

    The examples of a task are as long as its other rows and computed once per pass over prompts. Completions after them
    are as long as references. The number of examples is chosen by the training rows that are none.
    """
    seconds = 0.0
    for task in workload.tasks:
        settings = job.pipeline.few_shot(job.pipeline.tasks[task.name])
        k = settings.max_k
        if k and task.evaluated["test"]:
            # On a CPU the tokens of a pass that are shared count once, see `evaluation.generation.prefill_batches`.
            row_tokens = task.tokens * (1 if hardware.device == "cpu" else k + 1)
            rows_per_pass = max(PREFILL_TOKENS / row_tokens, 1)
            tokens = task.tokens * (workload.sharing + k / rows_per_pass)
            generated = min(task.tokens - task.prompt + 1, task.limit)
            rows = task.evaluated["test"] + len(settings.choices) * (MAX_CANDIDATES - k)
            seconds += rows * (tokens / rates.forward + generated / rates.decoding)
    return seconds


def format_duration(seconds: float) -> str:
    """A duration in the largest units that matter: `45 s`, `8 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
