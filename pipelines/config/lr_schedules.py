"""Learning rates as closed forms of the optimiser step, and how many steps a job has.

The training, a resumed training, `alfine check` and `alfine preview` read the same functions, so this file imports neither
torch nor Ludwig. Steps count from 0: `factor(…, step=k)` times the learning rate is what the k-th optimiser step takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

LEARNING_RATE = 0.001
"""Ludwig's, where `trainer.learning_rate` is not written."""


@dataclass(frozen=True)
class Settings:
    """`trainer.learning_rate_scheduler`, with Ludwig's defaults. `decay_steps` and `inverse_sqrt_warmup_steps` have defaults
    there that suit no fine-tuning; `check` demands that they be written."""

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
    def of(cls, section: Any) -> Settings:
        """From the section of a YAML, or from Ludwig's config object; keys that are not ours are passed over."""
        written = section if isinstance(section, Mapping) else vars(section)
        return cls(**{one.name: written[one.name] for one in fields(cls) if one.name in written})


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of a job: in an epoch, in all, and from one evaluation to the next."""

    per_epoch: int
    total: int
    per_evaluation: int

    @classmethod
    def of(cls, trainer: Mapping[str, Any], rows: int) -> Steps:
        """Of the section `trainer` with alfine's defaults, on `rows` training rows. An epoch has as many rows as there are,
        however tasks are mixed; its last step may be smaller. The number of workers does not matter: they share a step's rows."""
        per_epoch = math.ceil(rows / effective_batch_size(trainer))
        total = int(trainer.get("train_steps") or int(trainer.get("epochs", 3)) * per_epoch)
        paces = int(trainer.get("checkpoints_per_epoch") or 1)
        pace = int(trainer.get("steps_per_checkpoint") or max(per_epoch // paces, 1))
        return cls(per_epoch, total, min(pace, per_epoch, total))


def learning_rate(trainer: Mapping[str, Any]) -> float:
    """The highest rate of the training."""
    return float(trainer.get("learning_rate", LEARNING_RATE))


def effective_batch_size(trainer: Mapping[str, Any]) -> int:
    """Rows of an optimiser step, however many go through the model at once."""
    if trainer["batch_size"] == "auto":
        return int(trainer["effective_batch_size"])
    return int(trainer["batch_size"]) * int(trainer.get("gradient_accumulation_steps", 1))


def share_of(fraction: float, total: int) -> int:
    """`fraction` of the steps, rounded up as transformers does, but not for the rounding error of 0.1 · 30."""
    return math.ceil(round(fraction * total, 6))


def warmup_steps(settings: Settings, steps: Steps) -> int:
    """Steps before the rate has reached its peak. A fraction leaves one step at least at the peak."""
    if settings.decay == "one_cycle":
        return 0
    if settings.decay == "wsd":
        return min(share_of(settings.wsd_warmup_fraction, steps.total), steps.total - 1)
    if settings.warmup_evaluations:
        return int(settings.warmup_evaluations) * steps.per_evaluation
    if settings.warmup_fraction:
        return min(share_of(settings.warmup_fraction, steps.total), steps.total - 1)
    return settings.inverse_sqrt_warmup_steps if settings.decay == "inverse_sqrt" else 0


@dataclass(frozen=True)
class Moment:
    """Where a training is: step `step` of `total`, of which the first `warmup` warm up; `peak` is the learning rate."""

    step: int
    total: int
    warmup: int
    peak: float

    @property
    def past(self) -> int:
        """Steps since the warm-up."""
        return self.step - self.warmup

    @property
    def progress(self) -> float:
        """From 0, the end of the warm-up, to 1, the end of the training."""
        return min(self.past / max(self.total - self.warmup, 1), 1.0)


def factor(settings: Settings, steps: Steps, peak: float, step: int) -> float:
    """What the learning rate `peak` is multiplied by at `step`: in the warm-up step / warm-up steps, then the decay."""
    moment = Moment(min(step, steps.total), steps.total, warmup_steps(settings, steps), peak)
    if moment.step < moment.warmup:
        return moment.step / moment.warmup
    return DECAYS[settings.decay](settings, moment)


def constant(settings: Settings, at: Moment) -> float:
    """1."""
    return 1.0


def linear(settings: Settings, at: Moment) -> float:
    """1 − p, where p goes from 0 to 1 over the steps after the warm-up.

    As transformers' `get_linear_schedule_with_warmup`.
    """
    return 1.0 - at.progress


def exponential(settings: Settings, at: Moment) -> float:
    """decay_rate ^ (n / decay_steps) after n steps since the warm-up; with `staircase` the exponent is rounded down.

    As Keras' `ExponentialDecay`.
    """
    exponent = at.past / settings.decay_steps
    return math.pow(settings.decay_rate, math.floor(exponent) if settings.staircase else exponent)


def cosine(settings: Settings, at: Moment) -> float:
    """m + (1 − m) · (1 + cos πp) / 2, where m = eta_min / learning rate.

    Without `t_0`, p goes from 0 to 1 once, over the steps after the warm-up. With it the cosine restarts every `t_0` optimiser
    steps, each period `t_mult` times as long as the one before. Loshchilov and Hutter 2017, "SGDR", equation 5; as transformers'
    `get_cosine_with_min_lr_schedule_with_warmup` and torch's `CosineAnnealingWarmRestarts`.
    """
    progress = at.progress
    if settings.t_0 is not None:
        past, period = at.past, settings.t_0
        while settings.t_mult > 1 and past >= period:
            past, period = past - period, period * settings.t_mult
        progress = past % period / period
    least = settings.eta_min / at.peak
    return least + (1.0 - least) * _half_cosine(progress)


def one_cycle(settings: Settings, at: Moment) -> float:
    """Up by a half-cosine from 1 / div_factor to 1 at step pct_start · total − 1, down by another to
    1 / (div_factor · final_div_factor) at the last step.

    Smith and Topin 2018, "Super-Convergence"; as torch's `OneCycleLR`, without its cycle of the momentum.
    """
    first, top, last = 1.0 / settings.div_factor, settings.pct_start * at.total - 1.0, at.total - 1
    step = min(at.step, last)
    if step <= top:
        return 1.0 + (first - 1.0) * _half_cosine(step / top if top else 1.0)
    lowest = first / settings.final_div_factor
    return lowest + (1.0 - lowest) * _half_cosine((step - top) / (last - top))


def inverse_sqrt(settings: Settings, at: Moment) -> float:
    """√(w / step) after w steps of warm-up.

    Vaswani et al. 2017, "Attention Is All You Need", equation 3; as transformers' `get_inverse_sqrt_schedule` with a time scale
    of w.
    """
    return math.sqrt(at.warmup / at.step) if at.step else 1.0


def polynomial(settings: Settings, at: Moment) -> float:
    """m + (1 − m) · (1 − p) ^ polynomial_power, where m = polynomial_end_lr / learning rate.

    As transformers' `get_polynomial_decay_schedule_with_warmup`.
    """
    least = settings.polynomial_end_lr / at.peak
    return least + (1.0 - least) * math.pow(1.0 - at.progress, settings.polynomial_power)


def wsd(settings: Settings, at: Moment) -> float:
    """1, and over the last wsd_decay_fraction of the steps (1 + cos πp) / 2.

    Hu et al. 2024, "MiniCPM"; as transformers' `get_wsd_schedule` with a cosine decay.
    """
    decay = min(share_of(settings.wsd_decay_fraction, at.total), at.total - at.warmup)
    since = at.step - (at.total - decay)
    return _half_cosine(since / decay) if since > 0 else 1.0


DECAYS: dict[str | None, Callable[[Settings, Moment], float]] = {
    None: constant,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "inverse_sqrt": inverse_sqrt,
    "polynomial": polynomial,
    "wsd": wsd,
}
"""By `trainer.learning_rate_scheduler.decay`."""


def _half_cosine(progress: float) -> float:
    """From 1 to 0 while `progress` goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


class Plateau:
    """How often an evaluation without progress has reduced the rate: each time by `reduce_on_plateau_rate`, at most
    `reduce_on_plateau` times.

    As torch's `ReduceLROnPlateau`: `reduce_on_plateau_patience` evaluations in a row may pass without one that is better than
    the best so far by 0.01 %; the next such evaluation reduces, and the count starts again.
    """

    THRESHOLD = 1e-4

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.best, self.without_progress, self.reductions = math.inf, 0, 0

    @property
    def factor(self) -> float:
        return float(self.settings.reduce_on_plateau_rate**self.reductions)

    def see(self, loss: float) -> None:
        """Takes in an evaluation; a loss that is no number is none that is better."""
        if loss < self.best * (1.0 - self.THRESHOLD):
            self.best, self.without_progress = loss, 0
            return
        self.without_progress += 1
        if self.without_progress > self.settings.reduce_on_plateau_patience:
            self.reductions = min(self.reductions + 1, self.settings.reduce_on_plateau)
            self.without_progress = 0
