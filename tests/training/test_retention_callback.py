"""Retention evals during training: the history, and the early stop with the last good weights."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.evaluation.retention import PreparedRetentionEval
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training import retention_callback
from pipelines.training.retention_callback import RetentionCallback
from pipelines.training.trainer import FineTuneTrainer

EVALS = [
    PreparedRetentionEval("knowledge", "multiple_choice", []),
    PreparedRetentionEval("text", "text_nll", []),
]
BASE_MEANS = {"knowledge": 60.0, "text": 3.0}


@pytest.fixture
def run_steps(monkeypatch):
    """run_steps(max_regression, scores) → the history and the weight after one step per pair of scores."""

    def run(max_regression, scores):
        model = torch.nn.Linear(1, 1, bias=False)
        trainer = SimpleNamespace(
            model=SimpleNamespace(model=model),
            device=torch.device("cpu"),
            process_group=ProcessGroup(),
            history={},
            total_steps=99,
        )
        trainer.stop_after = lambda step: FineTuneTrainer.stop_after(trainer, step)
        callback = RetentionCallback(EVALS, None, 2, max_regression, BASE_MEANS)
        callback.on_train_start(model)
        for index, (knowledge, text) in enumerate(scores):
            means = {"knowledge": knowledge, "text": text}
            monkeypatch.setattr(retention_callback, "mean_scores", lambda *arguments, means=means: means)
            torch.nn.init.constant_(model.weight, index + 1)
            for step in (2 * index + 1, 2 * index + 2):
                callback.on_step_end(trainer, step)
        return trainer, float(model.weight.detach())

    return run


def test_scores_are_recorded_every_eval_steps(run_steps):
    trainer, weight = run_steps({}, [(60.0, 3.0), (10.0, 9.0)])
    assert [record["step"] for record in trainer.history["retention"]] == [2, 4]
    assert trainer.history["retention"][1]["scores"] == {"knowledge": 10.0, "text": 9.0}
    assert "stopped_by_retention" not in trainer.history and trainer.total_steps == 99 and weight == 2


@pytest.mark.parametrize(
    ("scores", "regressed"),
    [((54.0, 3.0), ["knowledge"]), ((60.0, 3.3), ["text"]), ((50.0, 4.0), ["knowledge", "text"])],
)
def test_training_stops_with_the_last_good_weights(run_steps, scores, regressed):
    trainer, weight = run_steps({"knowledge": 5.0, "text": 0.2}, [(56.0, 3.1), (90.0, 1.0), scores])
    assert trainer.history["stopped_by_retention"] == {"evals": regressed, "step": 6}
    assert trainer.total_steps == 6 and weight == 2


def test_the_last_good_weights_are_restored_from_a_checkpoint():
    model = torch.nn.Linear(1, 1, bias=False)
    saved, restored = (RetentionCallback(EVALS, None, 2, {"text": 0.2}, BASE_MEANS) for _ in range(2))
    torch.nn.init.constant_(model.weight, 7)
    saved.on_train_start(model)
    torch.nn.init.constant_(model.weight, 1)
    restored.on_train_start(model)
    restored.load_state_dict(saved.state_dict())
    assert float(restored.last_good_weights[0]) == 7
