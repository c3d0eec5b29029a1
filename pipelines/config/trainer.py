"""What in the section `trainer` contradicts itself, or the number of rows: settings that would act otherwise than written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.config.lr_schedules import LEARNING_RATE, Settings, Steps, factor, warmup_steps
from pipelines.config.messages import KeyPath, number

if TYPE_CHECKING:
    from pipelines.config.job import Job
    from pipelines.errors import Problem

SCHEDULER = ("trainer", "learning_rate_scheduler")
WARMUPS = ("warmup_fraction", "warmup_evaluations", "inverse_sqrt_warmup_steps")
Finding = tuple[str, KeyPath]
"""A sentence, and the key that it is about."""


def contradictions(trainer: Mapping[str, Any]) -> Iterator[Finding]:
    """Of the section as it is written; values of a wrong type are passed over."""
    scheduler = trainer.get("learning_rate_scheduler")
    if isinstance(scheduler, Mapping):
        yield from _warmup(scheduler)
        yield from _decay(scheduler, trainer)
    clipping = trainer.get("gradient_clipping")
    if isinstance(clipping, Mapping) and clipping.get("clipvalue") is not None and "clipglobalnorm" not in clipping:
        message = (
            "trainer.gradient_clipping.clipvalue acts after clipglobalnorm, which is 0.5 where it is not written; write "
            "clipglobalnorm: null beside it, or a norm of yours"
        )
        yield message, ("trainer", "gradient_clipping", "clipvalue")
    if trainer.get("early_stop") == 0 and not isinstance(trainer.get("early_stop"), bool):
        message = "trainer.early_stop: 0 never ends a training; write -1 for that, or how many evaluations to wait"
        yield message, ("trainer", "early_stop")


def _warmup(scheduler: Mapping[str, Any]) -> Iterator[Finding]:
    written = [key for key in WARMUPS if scheduler.get(key)]
    if len(written) > 1:
        message = f"trainer.learning_rate_scheduler: {' and '.join(written)} are the same warm-up twice; keep one"
        yield message, (*SCHEDULER, written[1])
    if scheduler.get("decay") == "inverse_sqrt" and not written:
        message = (
            "trainer.learning_rate_scheduler.decay: inverse_sqrt falls as the root of (warm-up steps / step), so it needs a "
            "warm-up; write warmup_fraction: 0.1, or inverse_sqrt_warmup_steps"
        )
        yield message, (*SCHEDULER, "decay")


def _decay(scheduler: Mapping[str, Any], trainer: Mapping[str, Any]) -> Iterator[Finding]:
    decay = scheduler.get("decay")
    if decay == "exponential" and "decay_steps" not in scheduler:
        message = (
            "trainer.learning_rate_scheduler.decay: exponential also needs decay_steps, the steps in which the rate falls to "
            "decay_rate, as in decay_steps: 100"
        )
        yield message, (*SCHEDULER, "decay")
    if decay == "wsd":
        names = [f"wsd_{part}_fraction" for part in ("warmup", "stable", "decay")]
        parts = [scheduler.get(name, getattr(Settings, name)) for name in names]
        if all(map(_is_number, parts)) and abs(sum(parts) - 1) > 1e-6:
            summed = " + ".join(map(number, parts))
            message = (
                f"trainer.learning_rate_scheduler: {', '.join(names)} must add up to 1, they are {summed} = "
                f"{number(sum(parts))}; write all three"
            )
            yield message, (*SCHEDULER, next(name for name in names if name in scheduler))
    peak = trainer.get("learning_rate", LEARNING_RATE)
    for key in ("eta_min", "polynomial_end_lr"):
        least = scheduler.get(key, 0)
        if _is_number(least) and _is_number(peak) and least >= peak > 0:
            message = (
                f"trainer.learning_rate_scheduler.{key} is the rate at the end and must be below trainer.learning_rate "
                f"({number(peak)}), found {number(least)}"
            )
            yield message, (*SCHEDULER, key)


def of_rows(job: Job, training: int, validation: int) -> Iterator[Problem]:
    """What `trainer` asks for and so many training and validation rows do not allow."""
    trainer = job.trainer
    scheduler = trainer.get("learning_rate_scheduler") or {}
    settings, steps = Settings.of(scheduler), Steps.of(trainer, training)
    for key in ("reduce_on_plateau", "early_stop"):
        section, path = (scheduler, (*SCHEDULER, key)) if key == "reduce_on_plateau" else (trainer, ("trainer", key))
        if int(section.get(key, 0)) > 0 and not validation:
            yield job.problem(
                f"{'.'.join(path)} has no effect without validation rows; take it out, or give some", *path
            )
    before_the_end = (steps.total - 1) // steps.per_evaluation
    needed = settings.reduce_on_plateau_patience + 2
    if settings.reduce_on_plateau and validation and before_the_end < needed:
        message = (
            f"trainer.learning_rate_scheduler.reduce_on_plateau has no effect: it takes {needed} evaluations to see "
            f"{needed - 1} in a row without progress, and there are {before_the_end} before the last step; write a smaller "
            f"reduce_on_plateau_patience, or a smaller trainer.steps_per_checkpoint"
        )
        yield job.problem(message, *SCHEDULER, "reduce_on_plateau")
    if settings.decay == "exponential" and settings.staircase and settings.decay_steps >= steps.total:
        message = (
            f"trainer.learning_rate_scheduler.decay_steps: a staircase of {settings.decay_steps} steps does not fall in a "
            f"training of {steps.total}; write fewer"
        )
        yield job.problem(message, *SCHEDULER, "decay_steps")
    yield from _never_reached(job, settings, steps)


def _never_reached(job: Job, settings: Settings, steps: Steps) -> Iterator[Problem]:
    """A schedule that stays below the learning rate that was asked for, which is how nothing is learned in silence."""
    warmup = warmup_steps(settings, steps)
    if warmup >= steps.total:
        message = (
            f"trainer.learning_rate_scheduler: the warm-up takes {warmup:,} steps and the training has {steps.total:,}, so the "
            f"learning rate is never reached; write a shorter warm-up, or more trainer.epochs"
        )
        yield job.problem(message, *SCHEDULER)
    elif max(factor(settings, steps, 1.0, step) for step in range(min(steps.total, 10_000))) < 0.5:
        message = (
            f"trainer.learning_rate_scheduler: with {steps.total} steps {settings.decay} never comes near the learning rate; "
            f"write decay: linear, or more trainer.epochs"
        )
        yield job.problem(message, *SCHEDULER)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
