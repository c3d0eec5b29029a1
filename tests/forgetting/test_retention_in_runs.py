"""Retention evals before, during and after training, on a tiny model."""

import json

import pytest

from pipelines.report import analyse
from pipelines.storage.files import read_jsonl
from tests.forgetting.continual_jobs import EVALS
from tests.jobs import run

pytestmark = pytest.mark.ludwig


def test_every_retention_eval_is_measured_before_and_after(project_with_evals):
    first = run()
    base, tuned = (read_jsonl(first.path("retention", f"{model}.jsonl")) for model in ("base", "tuned"))
    assert [record["eval"] for record in base] == ["knowledge"] * 9 + ["text"] * 8 + ["answers"] * 6
    assert all(record["score"] == pytest.approx(0, abs=1e-5) for record in base if record["eval"] == "answers")
    assert any(record["score"] > 1e-4 for record in tuned if record["eval"] == "answers")
    assert analyse(first.folder).retention.keys() == EVALS.keys()
    stages = first.manifest["stages"]
    rerun = run("one", "pipeline.forgetting.evals.text.limit=4").manifest["stages"]
    assert rerun["train"] == stages["train"] and rerun["eval_base_retention"] != stages["eval_base_retention"]


def test_a_regression_above_the_maximum_ends_the_training(project_with_evals):
    options = ("pipeline.forgetting.eval_steps=1", "trainer.epochs=3", "trainer.batch_size=16")
    complete = json.loads(run("one", *options).path("model", "training.json").read_text())
    assert [entry["step"] for entry in complete["retention"]] == list(range(1, complete["steps"] + 1))
    assert not complete.get("stopped_by_retention")
    drift = [entry["scores"]["answers"] for entry in complete["retention"]]
    max_regression = (drift[0] + drift[1]) / 2
    stopped = run("two", *options, f"pipeline.forgetting.max_regression.answers={max_regression}")
    history = json.loads(stopped.path("model", "training.json").read_text())
    assert history["stopped_by_retention"] == {"evals": ["answers"], "step": 2} and history["steps"] == 2
    # The weights are those of the last measurement without a regression above the maximum.
    records = read_jsonl(stopped.path("retention", "tuned.jsonl"))
    scores = [record["score"] for record in records if record["eval"] == "answers"]
    assert sum(scores) / len(scores) == pytest.approx(drift[0], rel=1e-3)
