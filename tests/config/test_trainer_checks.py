"""Settings of `trainer` that do not fit the number of rows."""

import json

import pytest

from pipelines.config.job import load_job
from pipelines.config.trainer_checks import check_trainer_on_data


def job_with(tmp_path, scheduler=None, **trainer):
    task = {"data": "rows.jsonl", "prompt": "{q}", "completion": "{a}"}
    settings = {
        "batch_size": 10,
        "learning_rate": 0.01,
        **trainer,
        **({"learning_rate_scheduler": scheduler} if scheduler else {}),
    }
    (tmp_path / "job.yaml").write_text(
        json.dumps({"pipeline": {"tasks": {"t": task}}, "base_model": "m", "trainer": settings})
    )
    return load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("scheduler", "trainer", "message"),
    [
        (
            {"warmup_evaluations": 3},
            {"epochs": 3},
            "the warm-up takes 30 steps and the training has 30, so the learning rate is never reached",
        ),
        (
            {"decay": "inverse_sqrt", "inverse_sqrt_warmup_steps": 50},
            {"train_steps": 20},
            "the warm-up takes 50 steps and the training has 20",
        ),
        ({"decay": "one_cycle"}, {"train_steps": 1}, "with 1 steps, one_cycle never comes near the learning rate"),
        (
            {"decay": "exponential", "decay_steps": 30, "staircase": True},
            {},
            "a staircase of 30 steps is constant in a training of 30",
        ),
        (
            {"reduce_on_plateau": 1},
            {},
            "requires 12 evaluations before the last step, and there are 2",
        ),
    ],
)
def test_settings_that_do_not_fit_the_number_of_rows(tmp_path, scheduler, trainer, message):
    job = job_with(tmp_path, scheduler, **trainer)
    (problem,) = check_trainer_on_data(job, 100, 10)
    assert message in problem.message and problem.line is not None


@pytest.mark.parametrize(
    ("scheduler", "trainer"),
    [
        (None, {}),
        ({"warmup_evaluations": 2}, {}),
        ({"decay": "linear", "warmup_fraction": 0.05}, {"train_steps": 1}),
        ({"decay": "one_cycle"}, {"train_steps": 2}),
        ({"decay": "exponential", "decay_steps": 29, "staircase": True}, {}),
        ({"reduce_on_plateau": 1, "reduce_on_plateau_patience": 0}, {}),
    ],
)
def test_settings_that_fit_the_number_of_rows(tmp_path, scheduler, trainer):
    assert list(check_trainer_on_data(job_with(tmp_path, scheduler, **trainer), 100, 10)) == []


@pytest.mark.parametrize(
    ("scheduler", "trainer", "key"),
    [
        ({"reduce_on_plateau": 1}, {}, "trainer.learning_rate_scheduler.reduce_on_plateau"),
        (None, {"early_stop": 3}, "trainer.early_stop"),
    ],
)
def test_keys_that_require_validation_rows(tmp_path, scheduler, trainer, key):
    (problem,) = check_trainer_on_data(job_with(tmp_path, scheduler, **trainer), 100, 0)
    assert problem.message == f"{key} has no effect without validation rows; remove it, or add validation rows"
