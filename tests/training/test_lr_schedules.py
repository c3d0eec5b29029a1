"""Every learning-rate schedule against torch's or transformers' own, step by step; and the rates of a real training."""

import json
import math
from itertools import product

import pytest
import torch
import transformers.optimization as hf
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau, SequentialLR

from pipelines.config.lr_schedules import DECAYS, Plateau, Settings, Steps, factor, learning_rate, share_of
from pipelines.training.lr_scheduler import LRScheduler
from pipelines.training.ludwig_config import ludwig_config
from pipelines.training.train import train
from tests.jobs import LORA

PEAK = 0.01


def optimizer(*rates):
    """SGD with a group of one weight for each rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (PEAK,)]
    return torch.optim.SGD(groups, lr=groups[0]["lr"])


def rates_of(scheduler, one, steps):
    """What the first group's rate is at each of `steps` optimiser steps, and after the last."""
    rates = [one.param_groups[0]["lr"]]
    for _ in range(steps):
        one.step()
        scheduler.step()
        rates.append(one.param_groups[0]["lr"])
    return rates


# --- what other libraries say -------------------------------------------------------------------------------------------

KINDS = {
    "constant": ({"decay": None}, lambda o, w, t: hf.get_constant_schedule_with_warmup(o, w)),
    "linear": ({"decay": "linear"}, hf.get_linear_schedule_with_warmup),
    "cosine": ({"decay": "cosine"}, hf.get_cosine_schedule_with_warmup),
    "cosine to a floor": (
        {"decay": "cosine", "eta_min": 1e-3},
        lambda o, w, t: hf.get_cosine_with_min_lr_schedule_with_warmup(o, w, t, min_lr=1e-3),
    ),
    "polynomial": (
        {"decay": "polynomial", "polynomial_power": 2.0, "polynomial_end_lr": 1e-4},
        lambda o, w, t: hf.get_polynomial_decay_schedule_with_warmup(o, w, t, lr_end=1e-4, power=2.0),
    ),
    "exponential": ({"decay": "exponential", "decay_rate": 0.5, "decay_steps": 4}, None),
    "staircase": ({"decay": "exponential", "decay_rate": 0.5, "decay_steps": 4, "staircase": True}, None),
    "restarts": ({"decay": "cosine", "t_0": 5, "eta_min": 1e-3}, None),
    "growing restarts": ({"decay": "cosine", "t_0": 3, "t_mult": 2}, None),
    "inverse_sqrt": ({"decay": "inverse_sqrt"}, lambda o, w, t: hf.get_inverse_sqrt_schedule(o, w, timescale=w)),
}
WARMUPS = {
    "none": ({}, 0),
    "fraction": ({"warmup_fraction": 0.15}, None),
    "evaluations": ({"warmup_evaluations": 2}, None),
}
ROWS = 37
LENGTHS = {"epochs": ({"epochs": 3}, None), "train_steps": ({"train_steps": 23}, 23)}


def expected_rates(kind, warmup, total):
    """Independently of pipelines.config.lr_schedules: from another library where it has the schedule, else from the formula."""
    settings, library = KINDS[kind]
    one = optimizer()
    if library is not None:
        return rates_of(library(one, warmup, total), one, total)
    if "t_0" in settings:
        restarts = CosineAnnealingWarmRestarts(
            one, settings["t_0"], settings.get("t_mult", 1), settings.get("eta_min", 0)
        )
        after = rates_of(restarts, one, total - warmup)
    else:
        after = []
        for n in range(total - warmup + 1):
            after.append(PEAK * 0.5 ** (n // 4 if settings.get("staircase") else n / 4))
    return [PEAK * k / warmup for k in range(warmup)] + after


@pytest.mark.parametrize(
    ("kind", "length", "accumulate", "warmup"),
    list(product(KINDS, LENGTHS, (1, 3), WARMUPS)),
    ids=lambda value: str(value),
)
def test_each_step_has_the_rate_of_the_other_library(kind, length, accumulate, warmup):
    if kind == "inverse_sqrt" and warmup == "none":
        pytest.skip("check refuses it: inverse_sqrt needs a warm-up")
    trainer = {
        "batch_size": 2,
        "gradient_accumulation_steps": accumulate,
        "steps_per_checkpoint": 2,
        **LENGTHS[length][0],
    }
    per_epoch = math.ceil(ROWS / (2 * accumulate))
    total = LENGTHS[length][1] or 3 * per_epoch
    steps = Steps.of(trainer, ROWS)
    assert steps == Steps(per_epoch, total, 2)
    first = {"none": 0, "fraction": math.ceil(0.15 * total), "evaluations": 4}[warmup]
    settings = Settings(**KINDS[kind][0], **WARMUPS[warmup][0])
    expected = expected_rates(kind, first, total)
    assert [PEAK * factor(settings, steps, PEAK, step) for step in range(total + 1)] == pytest.approx(
        expected, abs=1e-9, rel=1e-9
    )
    one = optimizer()
    found = rates_of(LRScheduler(settings, one, steps_per_checkpoint=2, total_steps=total), one, total)
    assert found == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_a_warm_up_before_restarts_is_that_of_torch():
    one, total = optimizer(), 20
    warm = torch.optim.lr_scheduler.LambdaLR(one, lambda step: step / 4)
    restarts = CosineAnnealingWarmRestarts(one, T_0=6)
    expected = rates_of(SequentialLR(one, [warm, restarts], milestones=[4]), one, total)
    settings = Settings(decay="cosine", t_0=6, warmup_fraction=0.2)
    assert [PEAK * factor(settings, Steps(20, 20, 20), PEAK, step) for step in range(21)] == pytest.approx(expected)


@pytest.mark.parametrize(("total", "start"), [(10, 0.3), (57, 0.3), (57, 0.5), (200, 0.1), (2, 0.3), (5, 0.9)])
def test_one_cycle_is_that_of_torch(total, start):
    one = optimizer()
    cycle = OneCycleLR(
        one, PEAK, total_steps=total, pct_start=start, div_factor=10, final_div_factor=100, cycle_momentum=False
    )
    expected = rates_of(cycle, one, total - 1)
    settings = Settings(decay="one_cycle", pct_start=start, div_factor=10, final_div_factor=100)
    steps = Steps(total, total, total)
    assert [PEAK * factor(settings, steps, PEAK, step) for step in range(total)] == pytest.approx(expected, rel=1e-9)
    assert factor(settings, steps, PEAK, total) == pytest.approx(
        1 / 1000
    )  # asked for after the last step, used for none


def test_one_cycle_reaches_its_peak_where_torch_divides_by_zero():
    assert factor(Settings(decay="one_cycle", pct_start=0.1), Steps(10, 10, 10), PEAK, 0) == 1.0


@pytest.mark.parametrize(
    ("total", "parts"), [(40, (0.1, 0.8, 0.1)), (30, (0.1, 0.6, 0.3)), (33, (0.2, 0.5, 0.3)), (10, (0.0, 0.7, 0.3))]
)
def test_wsd_is_that_of_transformers(total, parts):
    settings = Settings(
        decay="wsd",
        **{f"wsd_{name}_fraction": part for name, part in zip(("warmup", "stable", "decay"), parts, strict=True)},
    )
    one = optimizer()
    warmup, decay = (math.ceil(round(part * total, 6)) for part in (parts[0], parts[2]))
    library = hf.get_wsd_schedule(one, warmup, decay, num_training_steps=total, decay_type="cosine")
    expected = rates_of(library, one, total)
    assert [
        PEAK * factor(settings, Steps(total, total, total), PEAK, step) for step in range(total + 1)
    ] == pytest.approx(expected, abs=1e-12)


def test_every_schedule_is_compared_above():
    assert {settings["decay"] for settings, _ in KINDS.values()} | {"one_cycle", "wsd"} == set(DECAYS)


@pytest.mark.parametrize(
    ("fraction", "total", "steps"), [(0.1, 30, 3), (0.7, 10, 7), (0.05, 101, 6), (0.3, 10, 3), (0.01, 3, 1)]
)
def test_a_share_of_the_steps_knows_no_rounding_error(fraction, total, steps):
    assert share_of(fraction, total) == steps


@pytest.mark.parametrize("decay", ["linear", "cosine", "wsd", "polynomial", "inverse_sqrt", None])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_trainings_have_a_step_at_the_peak(decay, total):
    settings = Settings(decay=decay, warmup_fraction=0.05)
    assert max(factor(settings, Steps(1, total, 1), PEAK, step) for step in range(total)) == 1.0


# --- how many steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"batch_size": 8, "epochs": 3}, Steps(13, 39, 13)),
        ({"batch_size": 4, "gradient_accumulation_steps": 3}, Steps(9, 27, 9)),
        ({"batch_size": "auto", "effective_batch_size": 50, "epochs": 1}, Steps(2, 2, 2)),
        ({"batch_size": 8, "train_steps": 5}, Steps(13, 5, 5)),
        ({"batch_size": 8, "epochs": 1, "steps_per_checkpoint": 4}, Steps(13, 13, 4)),
        ({"batch_size": 8, "epochs": 1, "checkpoints_per_epoch": 2}, Steps(13, 13, 6)),
        ({"batch_size": 8, "epochs": 1, "checkpoints_per_epoch": 20}, Steps(13, 13, 1)),
    ],
)
def test_steps(trainer, expected):
    assert Steps.of(trainer, 100) == expected


# --- the schedule as an object ------------------------------------------------------------------------------------------


def test_groups_keep_their_ratio():
    """LoRA+ gives its B matrices a multiple of the rate."""
    one = optimizer(PEAK, 8 * PEAK)
    schedule = LRScheduler(Settings(decay="cosine", eta_min=1e-3), one, 5, 10)
    for _ in range(7):
        schedule.step()
    first, second = (group["lr"] for group in one.param_groups)
    assert first < PEAK and second == pytest.approx(8 * first)


def test_one_without_steps_leaves_the_optimiser_as_it_is():
    for decay in DECAYS:
        one = optimizer()
        LRScheduler(Settings(decay=decay), one, 0, 0)
        assert one.param_groups[0]["lr"] == PEAK


class Progress:
    def __init__(self, losses):
        self.train_metrics = {"completion": {"loss": [(0, 0, loss) for loss in losses]}}
        self.validation_metrics = {"completion": {"loss": [(0, 0, -loss) for loss in losses]}}
        self.num_reductions_learning_rate = 0


LOSSES = [3.0, 2.0, 2.0, 1.9999, 2.1, 1.5, math.nan, 1.6, 1.7, 1.8, 1.5, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4]


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_a_plateau_reduces_as_torch_does(patience):
    one = optimizer()
    library = ReduceLROnPlateau(one, factor=0.5, patience=patience, eps=0)
    plateau = Plateau(Settings(reduce_on_plateau=100, reduce_on_plateau_rate=0.5, reduce_on_plateau_patience=patience))
    for loss in LOSSES:
        library.step(loss)
        plateau.see(loss)
        assert PEAK * plateau.factor == pytest.approx(one.param_groups[0]["lr"])
    assert plateau.reductions >= 2


def test_reductions_multiply_the_decay_up_to_their_limit_and_survive_a_resume():
    settings = Settings(decay="linear", reduce_on_plateau=2, reduce_on_plateau_rate=0.1, reduce_on_plateau_patience=0)

    def rates(cut):
        one = optimizer()
        schedule, seen = LRScheduler(settings, one, 2, 20), []
        for step in range(20):
            seen.append(one.param_groups[0]["lr"])
            schedule.step()
            if step % 2:
                schedule.eval_step(Progress([1.0]), "completion")
            if step == cut:
                kept, groups = json.loads(json.dumps(schedule.state_dict())), one.state_dict()["param_groups"]
                one = optimizer(0.5)
                one.load_state_dict({"state": {}, "param_groups": groups})
                schedule = LRScheduler(settings, one, 2, 20)
                schedule.load_state_dict(kept)
        return seen

    whole = rates(None)
    reductions = [0, 0, 0, 0, 1, 1, *[2] * 14]
    assert whole == pytest.approx([PEAK * (1 - k / 20) * 0.1 ** reductions[k] for k in range(20)])
    assert all(rates(cut) == whole for cut in range(20))


def test_the_split_that_is_watched_is_the_one_that_was_asked_for():
    for split, reductions in (("training", 1), ("validation", 0)):
        one = optimizer()
        schedule = LRScheduler(
            Settings(reduce_on_plateau=1, reduce_on_plateau_patience=0, reduce_eval_split=split), one, 2, 20
        )
        for loss in (1.0, 2.0):  # worse in training; Progress turns the sign for validation
            schedule.eval_step(Progress([loss]), "completion")
        assert schedule.plateau.reductions == reductions


# --- Ludwig -------------------------------------------------------------------------------------------------------------


@pytest.mark.ludwig
def test_defaults_are_those_of_ludwig():
    from ludwig.schema.lr_scheduler import LRSchedulerConfig
    from ludwig.schema.trainer import FineTuneTrainerConfig

    assert Settings.of(LRSchedulerConfig()) == Settings()
    assert FineTuneTrainerConfig().learning_rate == learning_rate({})


class Stop(Exception):
    pass


@pytest.fixture
def recorded(monkeypatch):
    """recorded(job, run, base, cut) → the rate of each optimiser step of a training that is killed after step `cut` and goes on."""
    taken = []
    plain = torch.optim.AdamW.step

    def step(self, *arguments, **more):
        taken.append([group["lr"] for group in self.param_groups])
        return plain(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)

    def record(job, run, base, cut=None):
        taken.clear()

        def report(done, total, loss):
            if done == cut and loss is not None:
                raise Stop

        if cut is None:
            train(job, run, base, report)
            return list(taken)
        with pytest.raises(Stop):
            train(job, run, base, report)
        before = len(taken)
        first = []
        train(job, run, base, lambda done, total, loss: first.append(done))
        return taken[: first[0]] + taken[before:]

    return record


REAL = {
    "cosine": (
        {"decay": "cosine", "warmup_evaluations": 1},
        lambda k: k / 2 if k < 2 else (1 + math.cos(math.pi * (k - 2) / 7)) / 2,
    ),
    "one_cycle": (
        {"decay": "one_cycle", "pct_start": 4 / 9},
        lambda k: (
            0.04 + 0.96 * (1 - math.cos(math.pi * k / 3)) / 2
            if k < 3
            else 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (k - 3) / 5)) / 2
        ),
    ),
    "plateau": (
        {
            "reduce_on_plateau": 1,
            "reduce_on_plateau_patience": 0,
            "reduce_on_plateau_rate": 0.5,
            "reduce_eval_split": "validation",
        },
        lambda k: 1.0 if k < 4 else 0.5,
    ),
}


@pytest.mark.ludwig
@pytest.mark.parametrize("kind", REAL)
def test_a_real_training_takes_these_rates_and_goes_on_with_them(make_job, recorded, kind):
    """Over three epochs of three steps, with accumulation and LoRA+; cut off in the middle of an epoch."""
    scheduler, formula = REAL[kind]
    peak = 1e-9 if kind == "plateau" else 0.01  # at which no evaluation is better than the first
    settings = {
        "learning_rate": peak,
        "epochs": 3,
        "batch_size": 2,
        "gradient_accumulation_steps": 3,
        "steps_per_checkpoint": 2,
        "optimizer": {"type": "adamw"},
        "learning_rate_scheduler": scheduler,
    }
    adapter = {**LORA, "loraplus_lr_ratio": 4.0}
    whole = recorded(*make_job(adapter, **settings))
    assert [rate for rate, _ in whole] == pytest.approx([peak * formula(k) for k in range(9)], rel=1e-6, abs=1e-15)
    assert all(second == pytest.approx(4 * first) for first, second in whole)
    assert recorded(*make_job(adapter, name="again", **settings), cut=7 if kind == "plateau" else 5) == whole


@pytest.mark.ludwig
def test_clipping_is_off_and_adafactor_takes_the_learning_rate(make_job):
    """`gradient_clipping: null` is 0.5 in Ludwig, and its Adafactor takes no learning rate."""
    job, run, base = make_job(LORA, gradient_clipping=None, optimizer={"type": "adafactor"})
    written = ludwig_config(job, base, 18)["trainer"]
    assert written["gradient_clipping"] == {"clipglobalnorm": None}
    assert (written["optimizer"]["lr"], written["optimizer"]["relative_step"]) == (0.01, False)
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[-1] == 3
