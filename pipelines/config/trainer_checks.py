"""Checks of the section `trainer`: conflicting keys, and settings that do not fit the number of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.config.lr_schedules import (
    DEFAULT_LEARNING_RATE,
    ScheduleSettings,
    StepCounts,
    lr_factor,
    num_warmup_steps,
)
from pipelines.config.messages import format_number
from pipelines.config.optimizer_checks import Conflict, optimizer_conflicts
from pipelines.errors import Problem

if TYPE_CHECKING:
    from pipelines.config.job import Job

SCHEDULER = ("trainer", "learning_rate_scheduler")
WARMUP_KEYS = ("warmup_fraction", "warmup_evaluations", "inverse_sqrt_warmup_steps")
MAX_CHECKED_STEPS = 10_000
"""Steps of a schedule that are evaluated to find its highest learning rate."""


def trainer_conflicts(trainer: Mapping[str, Any]) -> Iterator[Conflict]:
    """Conflicts between keys of the section as it is written. Values of a wrong type are ignored."""
    yield from _schedule_conflicts(trainer)
    yield from _step_conflicts(trainer)
    yield from optimizer_conflicts(trainer)
    clipping = trainer.get("gradient_clipping")
    if isinstance(clipping, Mapping) and clipping.get("clipvalue") is not None and "clipglobalnorm" not in clipping:
        message = (
            "trainer.gradient_clipping.clipvalue is applied after clipglobalnorm, whose default is 0.5; add "
            "clipglobalnorm: null or your own norm"
        )
        yield message, ("trainer", "gradient_clipping", "clipvalue")
    if trainer.get("early_stop") == 0 and not isinstance(trainer.get("early_stop"), bool):
        message = (
            "trainer.early_stop: 0 never stops a training; write -1 for that, or the number of evaluations to wait"
        )
        yield message, ("trainer", "early_stop")
    if isinstance(regex := trainer.get("layers_to_freeze_regex"), str):
        try:
            re.compile(regex)
        except re.error as error:
            message = (
                f"trainer.layers_to_freeze_regex is not a regular expression ({error}); write \\( for a literal bracket"
            )
            yield message, ("trainer", "layers_to_freeze_regex")


def _step_conflicts(trainer: Mapping[str, Any]) -> Iterator[Conflict]:
    if trainer.get("steps_per_checkpoint") and trainer.get("checkpoints_per_epoch"):
        message = "trainer.checkpoints_per_epoch and trainer.steps_per_checkpoint are mutually exclusive; keep one"
        yield message, ("trainer", "checkpoints_per_epoch")
    if trainer.get("batch_size") == "auto":
        if trainer.get("effective_batch_size") is None:
            message = "trainer.batch_size: auto requires effective_batch_size, as in effective_batch_size: 16"
            yield message, ("trainer", "batch_size")
        if "gradient_accumulation_steps" in trainer:
            message = "trainer.gradient_accumulation_steps has no effect with batch_size: auto; remove it"
            yield message, ("trainer", "gradient_accumulation_steps")
    if trainer.get("train_steps") is not None and "epochs" in trainer:
        yield "trainer.epochs has no effect with trainer.train_steps; keep one", ("trainer", "epochs")


def _schedule_conflicts(trainer: Mapping[str, Any]) -> Iterator[Conflict]:
    scheduler = trainer.get("learning_rate_scheduler")
    if not isinstance(scheduler, Mapping):
        return
    yield from _warmup_conflicts(scheduler)
    if scheduler.get("decay") == "exponential" and "decay_steps" not in scheduler:
        message = (
            "trainer.learning_rate_scheduler.decay: exponential requires decay_steps, the number of steps in which "
            "the rate falls to decay_rate, as in decay_steps: 100"
        )
        yield message, (*SCHEDULER, "decay")
    if scheduler.get("decay") == "wsd":
        yield from _wsd_conflicts(scheduler)
    peak = trainer.get("learning_rate", DEFAULT_LEARNING_RATE)
    for key in ("eta_min", "polynomial_end_lr"):
        final = scheduler.get(key, 0)
        if _is_number(final) and _is_number(peak) and final >= peak > 0:
            message = (
                f"trainer.learning_rate_scheduler.{key} is the final learning rate and must be less than "
                f"trainer.learning_rate ({format_number(peak)}), found {format_number(final)}"
            )
            yield message, (*SCHEDULER, key)


def _warmup_conflicts(scheduler: Mapping[str, Any]) -> Iterator[Conflict]:
    warmup_keys = [key for key in WARMUP_KEYS if scheduler.get(key)]
    if len(warmup_keys) > 1:
        message = f"trainer.learning_rate_scheduler: {' and '.join(warmup_keys)} both define the warm-up; keep one"
        yield message, (*SCHEDULER, warmup_keys[1])
    if scheduler.get("decay") == "inverse_sqrt" and not warmup_keys:
        message = (
            "trainer.learning_rate_scheduler.decay: inverse_sqrt decays as √(warm-up steps / step), so it requires "
            "a warm-up; write warmup_fraction: 0.1, or inverse_sqrt_warmup_steps"
        )
        yield message, (*SCHEDULER, "decay")


def _wsd_conflicts(scheduler: Mapping[str, Any]) -> Iterator[Conflict]:
    keys = [f"wsd_{phase}_fraction" for phase in ("warmup", "stable", "decay")]
    fractions = [scheduler.get(key, getattr(ScheduleSettings, key)) for key in keys]
    if all(map(_is_number, fractions)) and abs(sum(fractions) - 1) > 1e-6:
        total = f"{' + '.join(map(format_number, fractions))} = {format_number(sum(fractions))}"
        message = f"trainer.learning_rate_scheduler: {', '.join(keys)} must add up to 1, found {total}; write all three"
        yield message, (*SCHEDULER, next(key for key in keys if key in scheduler))


def check_trainer_on_data(job: Job, num_train_rows: int, num_validation_rows: int) -> Iterator[Problem]:
    """Settings that have no effect, or prevent learning, with so many training and validation rows."""
    trainer = job.trainer
    scheduler = trainer.get("learning_rate_scheduler") or {}
    settings, steps = ScheduleSettings.from_config(scheduler), StepCounts.from_trainer(trainer, num_train_rows)
    if not num_validation_rows:
        for section, path in ((scheduler, (*SCHEDULER, "reduce_on_plateau")), (trainer, ("trainer", "early_stop"))):
            if int(section.get(path[-1], 0)) > 0:
                message = f"{'.'.join(path)} has no effect without validation rows; remove it, or add validation rows"
                yield job.problem(message, *path)
    evaluations_before_end = (steps.total - 1) // steps.per_evaluation
    required = settings.reduce_on_plateau_patience + 2
    if settings.reduce_on_plateau and num_validation_rows and evaluations_before_end < required:
        message = (
            f"trainer.learning_rate_scheduler.reduce_on_plateau has no effect: it requires {required} evaluations "
            f"before the last step, and there are {evaluations_before_end}; reduce reduce_on_plateau_patience or "
            "trainer.steps_per_checkpoint"
        )
        yield job.problem(message, *SCHEDULER, "reduce_on_plateau")
    if settings.decay == "exponential" and settings.staircase and settings.decay_steps >= steps.total:
        message = (
            f"trainer.learning_rate_scheduler.decay_steps: a staircase of {settings.decay_steps} steps is constant "
            f"in a training of {steps.total} steps; write fewer"
        )
        yield job.problem(message, *SCHEDULER, "decay_steps")
    yield from _peak_problems(job, settings, steps)


def _peak_problems(job: Job, settings: ScheduleSettings, steps: StepCounts) -> Iterator[Problem]:
    """A problem if the schedule does not come near the learning rate, so that the model would hardly learn."""
    warmup = num_warmup_steps(settings, steps)
    if warmup >= steps.total:
        message = (
            f"trainer.learning_rate_scheduler: the warm-up takes {warmup:,} steps and the training has "
            f"{steps.total:,}, so the learning rate is never reached; reduce the warm-up, or increase trainer.epochs"
        )
        yield job.problem(message, *SCHEDULER)
    elif max(lr_factor(settings, steps, 1.0, step) for step in range(min(steps.total, MAX_CHECKED_STEPS))) < 0.5:
        message = (
            f"trainer.learning_rate_scheduler: with {steps.total} steps, {settings.decay} never comes near the "
            "learning rate; write decay: linear, or increase trainer.epochs"
        )
        yield job.problem(message, *SCHEDULER)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
