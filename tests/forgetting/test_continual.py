"""Jobs that continue from an earlier run, on a tiny model."""

import json
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.errors import ConfigError
from pipelines.forgetting.continual import check_earlier_gates
from pipelines.modeling.loading import load_causal_lm
from pipelines.prediction.predict import predict
from pipelines.report import analyse
from pipelines.storage.files import read_jsonl
from pipelines.storage.run_folder import Run
from tests.bad_configs import GOOD, pipeline
from tests.forgetting.continual_jobs import run_second_job, write_second_job
from tests.jobs import QUIET, run

pytestmark = pytest.mark.ludwig


def test_a_gate_on_an_unknown_earlier_task_is_an_error(tmp_path):
    for name, continue_from, task in (("one", None, "reviews"), ("two", str(tmp_path / "one"), "sums")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(GOOD.replace("sentiment:", f"{task}:"), encoding="utf-8")
        (tmp_path / name / "manifest.json").write_text(
            json.dumps({"format_version": 2, "stages": {}, "continue_from": continue_from}), encoding="utf-8"
        )
    gates = "report: {gates: {one/reviews: {max_drop: 1}, two/sums: {max_drop: 1}, two/suns: {max_drop: 1}}}"
    (tmp_path / "job.yaml").write_text(
        pipeline(f"continue_from: {tmp_path}/two").replace("  tasks:", f"  {gates}\n  tasks:"), encoding="utf-8"
    )
    with pytest.raises(ConfigError) as error_info:
        check_earlier_gates(load_job(tmp_path / "job.yaml"), Run.open(tmp_path / "two"))
    (problem,) = error_info.value.problems
    assert problem.line == 3
    assert problem.message == "pipeline.report.gates.two/suns: there is no such earlier task; did you mean two/sums?"


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_a_job_starts_from_the_model_of_an_earlier_run(project_with_evals, adapter):
    overrides = () if adapter else ("adapter=null",)
    first = run("one", *overrides)
    write_second_job(strategy="ewc+si+replay+distill")
    second = run_second_job("two", *overrides)
    # The model that the second job starts from gives the completions of the first one's tuned model.
    before = read_jsonl(second.path("base", "completions.jsonl"))
    first_completions = {
        record["row"]: record["completion"]
        for record in read_jsonl(first.path("tuned", "completions.jsonl"))
        if record["task"] == "say"
    }
    assert [record["completion"] for record in before] == [first_completions[record["row"]] for record in before]
    records = read_jsonl(second.path("retention", "base.jsonl"))
    earlier_task = [record for record in records if record["eval"] == "one/odd"]
    assert earlier_task and all(record["score_after_own_task"] == record["score"] for record in earlier_task)
    transfer = analyse(second.folder).backward_transfer
    assert transfer is not None and transfer.tasks == 2
    page = " ".join(second.path("report.html").read_text(encoding="utf-8").split())
    assert "./base, continued from runs/one, was tuned on" in page
    load_causal_lm(second.path("start") if adapter else first.path("model"), allow_half_precision=True)
    Path("new.jsonl").write_text('{"text": "the 3"}\n')
    assert len(list(predict(second, ["new.jsonl"], "say", QUIET))) == 1


def test_the_third_job_is_evaluated_on_the_tasks_of_both_earlier_ones(project_with_evals):
    run("one")
    write_second_job()
    run_second_job("two")
    write_second_job("runs/two", strategy="ewc")
    third = run_second_job("three")
    evals = {record["eval"] for record in read_jsonl(third.path("retention", "base.jsonl"))}
    assert evals >= {"two/say", "one/odd", "one/say"}


def test_continuing_from_a_missing_incomplete_or_unrelated_run_is_an_error(project_with_evals):
    write_second_job("runs/none")
    with pytest.raises(ConfigError, match=r"second.yaml:1: pipeline.continue_from: runs/none holds no run"):
        run_second_job()
    first = run()
    stages = first.manifest["stages"]
    eval_tuned = stages.pop("eval_tuned")
    first.update()
    write_second_job()
    with pytest.raises(ConfigError, match="runs/one is not finished; finish it with: alfine run job.yaml --name one"):
        run_second_job()
    stages["eval_tuned"] = eval_tuned
    first.update(base_model="other/model")
    with pytest.raises(ConfigError, match="write base_model: other/model"):
        run_second_job()
