"""The digest of every stage changes with what the stage depends on, and with nothing else."""

import json
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.modeling.base_models import ensure_base_model
from pipelines.modeling.content_hash import fingerprint
from pipelines.stages.digests import stage_digests
from tests.tiny import make_model


def digests(*overrides):
    job = load_job(Path("job.yaml"), overrides)
    return stage_digests(job, fingerprint(ensure_base_model(job.base_model)))


def changed(edit, *overrides):
    """The stages whose digest changes by `edit`."""
    before = digests(*overrides)
    edit()
    after = digests(*overrides)
    return {stage for stage in before if before[stage] != after[stage]}


TRAIN_AND_LATER = {"train", "eval_tuned", "eval_tuned_retention", "report"}


def test_a_changed_custom_metric(project):
    Path("mine.py").write_text("def score(completion, reference, row):\n    return 1\n")
    edit = lambda: Path("mine.py").write_text("def score(completion, reference, row):\n    return 2\n")  # noqa: E731
    assert changed(edit, "pipeline.tasks.odd.metric=mine:score") == {"prepare", "report"}


def test_changed_replay_rows(project):
    Path("general.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    overrides = ["pipeline.forgetting.strategy=replay", "pipeline.forgetting.replay={data: general.jsonl}"]
    edit = lambda: Path("general.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')  # noqa: E731
    assert changed(edit, *overrides) >= TRAIN_AND_LATER


def test_a_changed_teacher(project):
    make_model(project / "teacher", seed=1)
    overrides = [
        "pipeline.forgetting.strategy=distill",
        "pipeline.forgetting.distill={teacher: ./teacher, apply_to: task}",
    ]
    assert changed(lambda: make_model(project / "teacher", seed=2), *overrides) == TRAIN_AND_LATER


def test_a_changed_base_model(project):
    assert changed(lambda: make_model(project / "base", seed=5)) == set(digests())


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("pipeline.report.test_rows=5", {"prepare", "eval_base", "eval_few_shot", "eval_tuned", "report"}),
        ("pipeline.tasks.odd.test_rows=all", {"prepare", "eval_base", "eval_few_shot", "eval_tuned", "report"}),
        ("pipeline.tasks.odd.test_rows=1000", set()),
        ("pipeline.report.validation_rows=5", {"prepare", "eval_base", *TRAIN_AND_LATER} - {"eval_tuned_retention"}),
    ],
)
def test_a_changed_number_of_rows(project, override, stages):
    before, after = digests(), digests(override)
    changed_stages = {stage for stage in before if before[stage] != after[stage]}
    assert changed_stages - {"eval_tuned_retention"} == stages


def test_splits_that_depend_on_the_metric_or_clusters_are_an_input_of_the_training(project):
    overrides = ("pipeline.tasks.odd.metric=rouge", "pipeline.tasks.odd.cluster_by=number")
    assert all(digests()["train"] == digests(override)["train"] for override in overrides)  # a column names the splits
    rows = [json.loads(line) for line in Path("odd.jsonl").read_text().splitlines() if line]
    without = [{name: value for name, value in row.items() if name != "split"} for row in rows]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without))
    assert all(digests()["train"] != digests(override)["train"] for override in overrides)
