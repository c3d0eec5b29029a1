"""The learning rates that the scheduler sets, compared with other libraries, and those of a training."""

import json
import math
from itertools import product

import pytest
import torch

from pipelines.config.lr_schedules import DECAYS, ScheduleSettings, StepCounts, lr_factor
from pipelines.training.lr_scheduler import LRScheduler
from pipelines.training.ludwig_config import ludwig_config
from pipelines.training.train import train
from tests.jobs import LORA
from tests.lr_schedules import LENGTHS, PEAK, ROWS, SCHEDULES, WARMUPS, expected_rates, make_optimizer, recorded_rates


@pytest.mark.parametrize(
    ("schedule", "length", "accumulate", "warmup"),
    list(product(SCHEDULES, LENGTHS, (1, 3), WARMUPS)),
    ids=lambda value: str(value),
)
def test_rates_equal_another_library(schedule, length, accumulate, warmup):
    if schedule == "inverse_sqrt" and warmup == "none":
        pytest.skip("check rejects it: inverse_sqrt needs a warm-up")
    trainer = {
        "batch_size": 2,
        "gradient_accumulation_steps": accumulate,
        "steps_per_checkpoint": 2,
        **LENGTHS[length][0],
    }
    per_epoch = math.ceil(ROWS / (2 * accumulate))
    total = LENGTHS[length][1] or 3 * per_epoch
    steps = StepCounts.from_trainer(trainer, ROWS)
    assert steps == StepCounts(per_epoch, total, 2)
    warmup_steps = {"none": 0, "fraction": math.ceil(0.15 * total), "evaluations": 4}[warmup]
    settings = ScheduleSettings(**SCHEDULES[schedule][0], **WARMUPS[warmup][0])
    expected = expected_rates(schedule, warmup_steps, total)
    assert [PEAK * lr_factor(settings, steps, PEAK, step) for step in range(total + 1)] == pytest.approx(
        expected, abs=1e-9, rel=1e-9
    )
    optimizer = make_optimizer()
    scheduler = LRScheduler(settings, optimizer, steps_per_checkpoint=2, total_steps=total)
    assert recorded_rates(scheduler, optimizer, total) == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_parameter_groups_keep_the_ratio_of_their_rates():
    """LoRA+ gives its B matrices a multiple of the rate."""
    optimizer = make_optimizer(PEAK, 8 * PEAK)
    scheduler = LRScheduler(ScheduleSettings(decay="cosine", eta_min=1e-3), optimizer, 5, 10)
    for _ in range(7):
        scheduler.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first < PEAK and second == pytest.approx(8 * first)


def test_a_scheduler_with_0_steps_does_not_change_the_optimizer():
    for decay in DECAYS:
        optimizer = make_optimizer()
        LRScheduler(ScheduleSettings(decay=decay), optimizer, 0, 0)
        assert optimizer.param_groups[0]["lr"] == PEAK


class Progress:
    def __init__(self, losses):
        self.train_metrics = {"completion": {"loss": [(0, 0, loss) for loss in losses]}}
        self.validation_metrics = {"completion": {"loss": [(0, 0, -loss) for loss in losses]}}
        self.num_reductions_learning_rate = 0


def test_reductions_multiply_the_decay_and_are_restored_on_resume():
    settings = ScheduleSettings(
        decay="linear", reduce_on_plateau=2, reduce_on_plateau_rate=0.1, reduce_on_plateau_patience=0
    )

    def rates(resume_after):
        optimizer = make_optimizer()
        scheduler, rates = LRScheduler(settings, optimizer, 2, 20), []
        for step in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
            if step % 2:
                scheduler.eval_step(Progress([1.0]), "completion")
            if step == resume_after:
                state, groups = json.loads(json.dumps(scheduler.state_dict())), optimizer.state_dict()["param_groups"]
                optimizer = make_optimizer(0.5)
                optimizer.load_state_dict({"state": {}, "param_groups": groups})
                scheduler = LRScheduler(settings, optimizer, 2, 20)
                scheduler.load_state_dict(state)
        return rates

    uninterrupted = rates(None)
    reductions = [0, 0, 0, 0, 1, 1, *[2] * 14]
    assert uninterrupted == pytest.approx([PEAK * (1 - step / 20) * 0.1 ** reductions[step] for step in range(20)])
    assert all(rates(step) == uninterrupted for step in range(20))


def test_reductions_follow_the_configured_split():
    for split, reductions in (("training", 1), ("validation", 0)):
        optimizer = make_optimizer()
        scheduler = LRScheduler(
            ScheduleSettings(reduce_on_plateau=1, reduce_on_plateau_patience=0, reduce_eval_split=split),
            optimizer,
            2,
            20,
        )
        for loss in (1.0, 2.0):  # worse in training; Progress inverts the sign for validation
            scheduler.eval_step(Progress([loss]), "completion")
        assert scheduler.plateau.num_reductions == reductions


class Stop(Exception):
    pass


@pytest.fixture
def recorded(monkeypatch):
    """recorded(job, run, base, interrupt_after) → the rates of each step of a training that is interrupted and resumed."""
    rates = []
    original_step = torch.optim.AdamW.step

    def step(self, *arguments, **keywords):
        rates.append([group["lr"] for group in self.param_groups])
        return original_step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)

    def record(job, run, base, interrupt_after=None):
        rates.clear()

        def progress(done, total, loss):
            if done == interrupt_after and loss is not None:
                raise Stop

        if interrupt_after is None:
            train(job, run, base, progress)
            return list(rates)
        with pytest.raises(Stop):
            train(job, run, base, progress)
        num_before = len(rates)
        steps = []
        train(job, run, base, lambda done, total, loss: steps.append(done))
        return rates[: steps[0]] + rates[num_before:]

    return record


TRAININGS = {
    "cosine": (
        {"decay": "cosine", "warmup_evaluations": 1},
        lambda step: step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 7)) / 2,
    ),
    "one_cycle": (
        {"decay": "one_cycle", "pct_start": 4 / 9},
        lambda step: (
            0.04 + 0.96 * (1 - math.cos(math.pi * step / 3)) / 2
            if step < 3
            else 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (step - 3) / 5)) / 2
        ),
    ),
    "plateau": (
        {
            "reduce_on_plateau": 1,
            "reduce_on_plateau_patience": 0,
            "reduce_on_plateau_rate": 0.5,
            "reduce_eval_split": "validation",
        },
        lambda step: 1.0 if step < 4 else 0.5,
    ),
}


@pytest.mark.ludwig
@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_uses_these_rates_and_keeps_them_on_resume(make_job, recorded, kind):
    """Three epochs of three steps, with accumulation and LoRA+; interrupted in the middle of an epoch."""
    scheduler, formula = TRAININGS[kind]
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
    rates = recorded(*make_job(adapter, **settings))
    expected = [peak * formula(step) for step in range(9)]
    assert [rate for rate, _ in rates] == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert all(second == pytest.approx(4 * first) for first, second in rates)
    resumed = recorded(*make_job(adapter, name="resumed", **settings), interrupt_after=7 if kind == "plateau" else 5)
    assert resumed == rates


@pytest.mark.ludwig
def test_null_clipping_is_off_and_adafactor_uses_the_learning_rate(make_job):
    """In Ludwig, `gradient_clipping: null` is 0.5 and Adafactor ignores the learning rate."""
    job, run, base = make_job(LORA, gradient_clipping=None, optimizer={"type": "adafactor"})
    trainer = ludwig_config(job, base, 18)["trainer"]
    assert trainer["gradient_clipping"] == {"clipglobalnorm": None}
    assert (trainer["optimizer"]["lr"], trainer["optimizer"]["relative_step"]) == (0.01, False)
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[-1] == 3
