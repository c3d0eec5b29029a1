"""The closed form of every learning-rate schedule, step by step against torch or transformers."""

import math

import pytest
import torch
import transformers.optimization as hf
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau, SequentialLR

from pipelines.config.lr_schedules import (
    DECAYS,
    Plateau,
    ScheduleSettings,
    StepCounts,
    fraction_to_steps,
    lr_factor,
    peak_learning_rate,
)
from tests.lr_schedules import PEAK, SCHEDULES, make_optimizer, recorded_rates


def test_warmup_before_restarts_equals_torch():
    optimizer, total = make_optimizer(), 20
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0=6)
    expected = recorded_rates(SequentialLR(optimizer, [warm, restarts], milestones=[4]), optimizer, total)
    settings = ScheduleSettings(decay="cosine", t_0=6, warmup_fraction=0.2)
    assert [PEAK * lr_factor(settings, StepCounts(20, 20, 20), PEAK, step) for step in range(21)] == pytest.approx(
        expected
    )


@pytest.mark.parametrize(("total", "start"), [(10, 0.3), (57, 0.3), (57, 0.5), (200, 0.1), (2, 0.3), (5, 0.9)])
def test_one_cycle_equals_torch(total, start):
    optimizer = make_optimizer()
    cycle = OneCycleLR(
        optimizer, PEAK, total_steps=total, pct_start=start, div_factor=10, final_div_factor=100, cycle_momentum=False
    )
    expected = recorded_rates(cycle, optimizer, total - 1)
    settings = ScheduleSettings(decay="one_cycle", pct_start=start, div_factor=10, final_div_factor=100)
    steps = StepCounts(total, total, total)
    assert [PEAK * lr_factor(settings, steps, PEAK, step) for step in range(total)] == pytest.approx(expected, rel=1e-9)
    # It is computed once more after the last step and not used.
    assert lr_factor(settings, steps, PEAK, total) == pytest.approx(1 / 1000)


def test_one_cycle_reaches_its_peak_where_torch_divides_by_zero():
    assert lr_factor(ScheduleSettings(decay="one_cycle", pct_start=0.1), StepCounts(10, 10, 10), PEAK, 0) == 1.0


@pytest.mark.parametrize(
    ("total", "parts"), [(40, (0.1, 0.8, 0.1)), (30, (0.1, 0.6, 0.3)), (33, (0.2, 0.5, 0.3)), (10, (0.0, 0.7, 0.3))]
)
def test_wsd_equals_transformers(total, parts):
    settings = ScheduleSettings(
        decay="wsd",
        **{f"wsd_{name}_fraction": part for name, part in zip(("warmup", "stable", "decay"), parts, strict=True)},
    )
    optimizer = make_optimizer()
    warmup, decay = (math.ceil(round(part * total, 6)) for part in (parts[0], parts[2]))
    library = hf.get_wsd_schedule(optimizer, warmup, decay, num_training_steps=total, decay_type="cosine")
    expected = recorded_rates(library, optimizer, total)
    steps = StepCounts(total, total, total)
    rates = [PEAK * lr_factor(settings, steps, PEAK, step) for step in range(total + 1)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_every_schedule_is_compared():
    assert {settings["decay"] for settings, _ in SCHEDULES.values()} | {"one_cycle", "wsd"} == set(DECAYS)


@pytest.mark.parametrize(
    ("fraction", "total", "steps"), [(0.1, 30, 3), (0.7, 10, 7), (0.05, 101, 6), (0.3, 10, 3), (0.01, 3, 1)]
)
def test_a_fraction_of_the_steps_has_no_rounding_error(fraction, total, steps):
    assert fraction_to_steps(fraction, total) == steps


@pytest.mark.parametrize("decay", ["linear", "cosine", "wsd", "polynomial", "inverse_sqrt", None])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_trainings_have_a_step_at_the_peak(decay, total):
    settings = ScheduleSettings(decay=decay, warmup_fraction=0.05)
    assert max(lr_factor(settings, StepCounts(1, total, 1), PEAK, step) for step in range(total)) == 1.0


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"batch_size": 8, "epochs": 3}, StepCounts(13, 39, 13)),
        ({"batch_size": 4, "gradient_accumulation_steps": 3}, StepCounts(9, 27, 9)),
        ({"batch_size": "auto", "effective_batch_size": 50, "epochs": 1}, StepCounts(2, 2, 2)),
        ({"batch_size": 8, "train_steps": 5}, StepCounts(13, 5, 5)),
        ({"batch_size": 8, "epochs": 1, "steps_per_checkpoint": 4}, StepCounts(13, 13, 4)),
        ({"batch_size": 8, "epochs": 1, "checkpoints_per_epoch": 2}, StepCounts(13, 13, 6)),
        ({"batch_size": 8, "epochs": 1, "checkpoints_per_epoch": 20}, StepCounts(13, 13, 1)),
    ],
)
def test_steps(trainer, expected):
    assert StepCounts.from_trainer(trainer, 100) == expected


LOSSES = [3.0, 2.0, 2.0, 1.9999, 2.1, 1.5, math.nan, 1.6, 1.7, 1.8, 1.5, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4]


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_reductions_on_a_plateau_equal_torch(patience):
    optimizer = make_optimizer()
    library = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0)
    plateau = Plateau(
        ScheduleSettings(reduce_on_plateau=100, reduce_on_plateau_rate=0.5, reduce_on_plateau_patience=patience)
    )
    for loss in LOSSES:
        library.step(loss)
        plateau.update(loss)
        assert PEAK * plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateau.num_reductions >= 2


@pytest.mark.ludwig
def test_defaults_equal_ludwigs():
    # Ludwig: half a minute that the other tests do not need.
    from ludwig.schema.lr_scheduler import LRSchedulerConfig
    from ludwig.schema.trainer import FineTuneTrainerConfig

    assert ScheduleSettings.from_config(LRSchedulerConfig()) == ScheduleSettings()
    assert FineTuneTrainerConfig().learning_rate == peak_learning_rate({})
