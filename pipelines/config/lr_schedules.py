"""Learning-rate schedules as closed forms of the optimizer step, and the number of steps of a job.

Training, a resumed training, `alfine check` and `alfine preview` use the same functions. Steps count from 0: the
learning rate of step k is `lr_factor(…, step=k)` times the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

DEFAULT_LEARNING_RATE = 0.001
"""Ludwig's default of `trainer.learning_rate`."""


@dataclass(frozen=True)
class ScheduleSettings:
    """The section `trainer.learning_rate_scheduler`, with Ludwig's defaults.

    The defaults of `decay_steps` and `inverse_sqrt_warmup_steps` do not suit fine-tuning, so `check` requires a value.
    """

    decay: str | None = None
    decay_rate: float = 0.96
    decay_steps: int = 10_000
    staircase: bool = False
    reduce_on_plateau: int = 0
    reduce_on_plateau_patience: int = 10
    reduce_on_plateau_rate: float = 0.1
    reduce_eval_split: str = "training"
    warmup_evaluations: int = 0
    warmup_fraction: float = 0.0
    t_0: int | None = None
    t_mult: int = 1
    eta_min: float = 0.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    inverse_sqrt_warmup_steps: int = 4000
    polynomial_power: float = 1.0
    polynomial_end_lr: float = 0.0
    wsd_warmup_fraction: float = 0.1
    wsd_stable_fraction: float = 0.8
    wsd_decay_fraction: float = 0.1

    @classmethod
    def from_config(cls, section: Any) -> ScheduleSettings:
        """Creates the settings from the section of a YAML file or from Ludwig's config object. Other keys are
        ignored."""
        values = section if isinstance(section, Mapping) else vars(section)
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True)
class StepCounts:
    """Numbers of optimizer steps: of an epoch, in total, and between two evaluations."""

    per_epoch: int
    total: int
    per_evaluation: int

    @classmethod
    def from_trainer(cls, trainer: Mapping[str, Any], num_train_rows: int) -> StepCounts:
        """Computes the numbers from the section `trainer` with alfine's defaults.

        An epoch has as many rows as the training set, however tasks are mixed; its last step may have fewer rows than
        the others. The number of workers does not matter, because they share the rows of a step.
        """
        per_epoch = math.ceil(num_train_rows / effective_batch_size(trainer))
        total = int(trainer.get("train_steps") or int(trainer.get("epochs", 3)) * per_epoch)
        evaluations_per_epoch = int(trainer.get("checkpoints_per_epoch") or 1)
        per_evaluation = int(trainer.get("steps_per_checkpoint") or max(per_epoch // evaluations_per_epoch, 1))
        return cls(per_epoch, total, min(per_evaluation, per_epoch, total))


def peak_learning_rate(trainer: Mapping[str, Any]) -> float:
    """The peak learning rate of the section `trainer`."""
    return float(trainer.get("learning_rate", DEFAULT_LEARNING_RATE))


def effective_batch_size(trainer: Mapping[str, Any]) -> int:
    """The number of rows of an optimizer step, independent of the size of a micro-batch."""
    if trainer["batch_size"] == "auto":
        return int(trainer["effective_batch_size"])
    return int(trainer["batch_size"]) * int(trainer.get("gradient_accumulation_steps", 1))


def fraction_to_steps(fraction: float, total: int) -> int:
    """A fraction of the steps, rounded up as in transformers, but without the rounding error of 0.1 · 30."""
    return math.ceil(round(fraction * total, 6))


def num_warmup_steps(settings: ScheduleSettings, steps: StepCounts) -> int:
    """The number of steps before the learning rate reaches its peak. A fraction leaves one step at the peak."""
    if settings.decay == "one_cycle":
        return 0
    if settings.decay == "wsd":
        return min(fraction_to_steps(settings.wsd_warmup_fraction, steps.total), steps.total - 1)
    if settings.warmup_evaluations:
        return int(settings.warmup_evaluations) * steps.per_evaluation
    if settings.warmup_fraction:
        return min(fraction_to_steps(settings.warmup_fraction, steps.total), steps.total - 1)
    return settings.inverse_sqrt_warmup_steps if settings.decay == "inverse_sqrt" else 0


@dataclass(frozen=True)
class SchedulePosition:
    """A step of a schedule.

    step: from 0.
    total: the number of steps.
    warmup: the number of warm-up steps.
    peak: the peak learning rate.
    """

    step: int
    total: int
    warmup: int
    peak: float

    @property
    def steps_after_warmup(self) -> int:
        return self.step - self.warmup

    @property
    def progress(self) -> float:
        """The progress after the warm-up: 0 at its end, 1 at the end of the training."""
        return min(self.steps_after_warmup / max(self.total - self.warmup, 1), 1.0)


def lr_factor(settings: ScheduleSettings, steps: StepCounts, peak: float, step: int) -> float:
    """The learning rate of `step` divided by `peak`: step / warm-up steps during the warm-up, then the decay."""
    position = SchedulePosition(min(step, steps.total), steps.total, num_warmup_steps(settings, steps), peak)
    if position.step < position.warmup:
        return position.step / position.warmup
    return DECAYS[settings.decay](settings, position)


def constant(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """The factor is always 1."""
    return 1.0


def linear(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """1 − p, where p increases from 0 to 1 over the steps after the warm-up.

    Equals transformers' `get_linear_schedule_with_warmup`.
    """
    return 1.0 - position.progress


def exponential(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """decay_rate ^ (n / decay_steps), n steps after the warm-up; with `staircase` the exponent is rounded down.

    Equals Keras' `ExponentialDecay`.
    """
    exponent = position.steps_after_warmup / settings.decay_steps
    return math.pow(settings.decay_rate, math.floor(exponent) if settings.staircase else exponent)


def cosine(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """m + (1 − m) · (1 + cos πp) / 2, where m = eta_min / learning rate.

    Without `t_0`, p increases from 0 to 1 once, over the steps after the warm-up; this equals transformers'
    `get_cosine_with_min_lr_schedule_with_warmup`. With `t_0`, the cosine restarts every `t_0` steps, and each period is
    `t_mult` times as long as the one before; this equals torch's `CosineAnnealingWarmRestarts`. Loshchilov and Hutter
    2017, "SGDR", equation 5.
    """
    progress = position.progress
    if settings.t_0 is not None:
        step, period = position.steps_after_warmup, settings.t_0
        while settings.t_mult > 1 and step >= period:
            step, period = step - period, period * settings.t_mult
        progress = step % period / period
    minimum = settings.eta_min / position.peak
    return minimum + (1.0 - minimum) * _half_cosine(progress)


def one_cycle(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """Rises by a half-cosine from 1 / div_factor to 1 at step pct_start · total − 1, then falls by another
    half-cosine to 1 / (div_factor · final_div_factor) at the last step.

    Smith and Topin 2018, "Super-Convergence". Equals torch's `OneCycleLR`, without its momentum schedule.
    """
    initial, peak_step, last_step = (
        1.0 / settings.div_factor,
        settings.pct_start * position.total - 1.0,
        position.total - 1,
    )
    step = min(position.step, last_step)
    if step <= peak_step:
        return 1.0 + (initial - 1.0) * _half_cosine(step / peak_step if peak_step else 1.0)
    final = initial / settings.final_div_factor
    return final + (1.0 - final) * _half_cosine((step - peak_step) / (last_step - peak_step))


def inverse_sqrt(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """√(w / step) after w warm-up steps.

    Vaswani et al. 2017, "Attention Is All You Need", equation 3. Equals transformers' `get_inverse_sqrt_schedule`
    with a time scale of w.
    """
    return math.sqrt(position.warmup / position.step) if position.step else 1.0


def polynomial(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """m + (1 − m) · (1 − p) ^ polynomial_power, where m = polynomial_end_lr / learning rate.

    Equals transformers' `get_polynomial_decay_schedule_with_warmup`.
    """
    minimum = settings.polynomial_end_lr / position.peak
    return minimum + (1.0 - minimum) * math.pow(1.0 - position.progress, settings.polynomial_power)


def wsd(settings: ScheduleSettings, position: SchedulePosition) -> float:
    """1, then (1 + cos πp) / 2 over the last wsd_decay_fraction of the steps.

    Hu et al. 2024, "MiniCPM". Equals transformers' `get_wsd_schedule` with a cosine decay.
    """
    num_decay_steps = min(
        fraction_to_steps(settings.wsd_decay_fraction, position.total), position.total - position.warmup
    )
    decay_step = position.step - (position.total - num_decay_steps)
    return _half_cosine(decay_step / num_decay_steps) if decay_step > 0 else 1.0


DECAYS: dict[str | None, Callable[[ScheduleSettings, SchedulePosition], float]] = {
    None: constant,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "inverse_sqrt": inverse_sqrt,
    "polynomial": polynomial,
    "wsd": wsd,
}
"""Value of `trainer.learning_rate_scheduler.decay` → the function that computes the factor after the warm-up."""


def _half_cosine(progress: float) -> float:
    """Decreases from 1 to 0 as `progress` increases from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


class Plateau:
    """Reductions of the learning rate on a plateau: each multiplies it by `reduce_on_plateau_rate`, at most
    `reduce_on_plateau` times.

    Equals torch's `ReduceLROnPlateau`. A reduction follows more than `reduce_on_plateau_patience` consecutive
    evaluations that do not improve on the best loss by 0.01 %; then the count restarts.
    """

    THRESHOLD = 1e-4

    def __init__(self, settings: ScheduleSettings) -> None:
        self.settings = settings
        self.best_loss, self.num_bad_evaluations, self.num_reductions = math.inf, 0, 0

    @property
    def factor(self) -> float:
        return float(self.settings.reduce_on_plateau_rate**self.num_reductions)

    def update(self, loss: float) -> None:
        """Records the loss of an evaluation. A loss that is NaN is no improvement."""
        if loss < self.best_loss * (1.0 - self.THRESHOLD):
            self.best_loss, self.num_bad_evaluations = loss, 0
            return
        self.num_bad_evaluations += 1
        if self.num_bad_evaluations > self.settings.reduce_on_plateau_patience:
            self.num_reductions = min(self.num_reductions + 1, self.settings.reduce_on_plateau)
            self.num_bad_evaluations = 0
