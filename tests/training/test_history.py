"""The training loss of an evaluation is the mean over the steps since the one before."""

import math

from pipelines.training.history import loss_since_last_evaluation


def test_the_mean_is_over_the_steps_since_the_last_evaluation():
    history = {"train_loss": [{"step": step, "loss": float(step)} for step in (1, 2, 4, 6)], "validation_loss": []}
    assert loss_since_last_evaluation(history) == 13 / 4
    history["validation_loss"] = [{"step": 1}, {"step": 2}]
    assert loss_since_last_evaluation(history) == 5
    history["validation_loss"].append({"step": 6})
    assert math.isnan(loss_since_last_evaluation(history))
