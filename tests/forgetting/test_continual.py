"""Jobs one after the other, guards on the way, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.config.job import load_job
from pipelines.errors import ConfigError, ModelError
from pipelines.forgetting.continual import check_earlier_gates
from pipelines.modeling.loading import load_causal_lm
from pipelines.predict import predict
from pipelines.report import analyse
from pipelines.storage.files import read_jsonl
from pipelines.storage.run_folder import Run
from tests.bad_configs import GOOD, pipeline
from tests.jobs import QUIET, run
from tests.tiny import make_model

pytestmark = pytest.mark.ludwig


def test_a_gate_on_an_earlier_task_names_one_that_is_there(tmp_path):
    for name, after, task in (("one", None, "reviews"), ("two", str(tmp_path / "one"), "sums")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(GOOD.replace("sentiment:", f"{task}:"), encoding="utf-8")
        (tmp_path / name / "manifest.json").write_text(
            json.dumps({"format_version": 1, "stages": {}, "continue_from": after}), encoding="utf-8"
        )
    gates = "report: {gates: {one/reviews: {max_drop: 1}, two/sums: {max_drop: 1}, two/suns: {max_drop: 1}}}"
    (tmp_path / "job.yaml").write_text(
        pipeline(f"continue_from: {tmp_path}/two").replace("  tasks:", f"  {gates}\n  tasks:"), encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        check_earlier_gates(load_job(tmp_path / "job.yaml"), Run.open(tmp_path / "two"))
    (problem,) = caught.value.problems
    assert problem.line == 3
    assert problem.message == "pipeline.report.gates.two/suns: there is no such earlier task; did you mean two/sums?"


@pytest.fixture
def guarded(project):
    """The project with guards of its own, of every kind, and general rows of its own."""
    folder = Path("own")
    for name in ("guards", "general"):
        (folder / name).mkdir(parents=True)
        Path(folder, name, "passages.jsonl").write_text(
            "".join(json.dumps({"text": f"{name}: the inn at nine {n}"}) + "\n" for n in range(8))
        )
        asked = [json.dumps({"instruction": f"{name}: say {n}"}) + "\n" for n in range(6)]
        Path(folder, name, "instructions.jsonl").write_text("".join(asked))
    items = [{"question": f"is {n} tea?", "choices": ["a gate", "tea", "ice"], "answer": n % 3} for n in range(9)]
    Path(folder, "guards", "choices.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    guards = {
        "knowledge": {"kind": "multiple_choice", "data": "own/retention/choices.jsonl"},
        "text": {"kind": "text_nll", "data": "own/retention/passages.jsonl"},
        "answers": {"kind": "kl", "data": "own/retention/instructions.jsonl"},
    }
    config = json.loads(Path("job.yaml").read_text())
    config["pipeline"]["forgetting"] = {"strategy": "none", "evals": guards}
    Path("job.yaml").write_text(json.dumps(config))
    return project


@pytest.fixture(autouse=True)
def own_general_rows(monkeypatch):
    for module in ("build", "files"):
        monkeypatch.setattr(f"pipelines.forgetting.{module}.bundled_file", lambda name: Path("own") / name)
    monkeypatch.setattr("pipelines.sweep.bundled_file", lambda name: Path("own") / name)


def second_job(after="runs/one", **forgetting):
    """The second task alone, on from the first run."""
    config = json.loads(Path("job.yaml").read_text())
    del config["pipeline"]["tasks"]["odd"]
    config["pipeline"]["continue_from"] = after
    config["pipeline"]["forgetting"] |= forgetting
    Path("second.yaml").write_text(json.dumps(config))


def run_second(name="two", *overrides):
    from pipelines.run import run_job
    from pipelines.storage.run_folder import Run

    run_job(
        load_job(Path("second.yaml"), overrides),
        Run(Path("runs") / name),
        f"alfine run second.yaml --name {name}",
        QUIET,
    )
    return Run(Path("runs") / name)


def test_every_guard_is_measured_before_and_after(guarded):
    first = run()
    base, tuned = (read_jsonl(first.path("retention", f"{which}.jsonl")) for which in ("base", "tuned"))
    assert [line["eval"] for line in base] == ["knowledge"] * 9 + ["text"] * 8 + ["answers"] * 6
    assert all(line["score"] == pytest.approx(0, abs=1e-5) for line in base if line["eval"] == "answers")
    assert any(line["score"] > 1e-4 for line in tuned if line["eval"] == "answers")
    assert set(analyse(first.folder).guards) == {"knowledge", "text", "answers"}
    finished = first.manifest["stages"]
    again = run("one", "pipeline.forgetting.evals.text.limit=4").manifest["stages"]
    assert again["train"] == finished["train"] and again["eval_base_retention"] != finished["eval_base_retention"]


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_a_job_goes_on_from_another(guarded, adapter):
    without = () if adapter else ("adapter=null",)
    first = run("one", *without)
    second_job(strategy="ewc+si+replay+distill")
    second = run_second("two", *without)
    # What the second job starts from answers as the first one's tuned model does.
    start = second.path("start") if adapter else first.path("model")
    before = read_jsonl(second.path("base", "completions.jsonl"))
    said = {
        line["row"]: line["completion"]
        for line in read_jsonl(first.path("tuned", "completions.jsonl"))
        if line["task"] == "say"
    }
    assert [line["completion"] for line in before] == [said[line["row"]] for line in before]
    lines = [line for line in read_jsonl(second.path("retention", "base.jsonl")) if line["eval"] == "one/odd"]
    assert lines and all(line["score_after_own_task"] == line["score"] for line in lines)
    analysis = analyse(second.folder)
    assert analysis.bwt is not None and analysis.bwt.tasks == 2
    assert "./base, as runs/one left it, was tuned on" in second.path("report.html").read_text(encoding="utf-8")
    load_causal_lm(start, frozen=True)
    Path("new.jsonl").write_text('{"text": "the 3"}\n')
    predicted = list(predict(second, Path("new.jsonl"), "say", QUIET))
    assert len(predicted) == 1
    # The third knows both.
    second_job("runs/two", strategy="ewc")
    third = run_second("three", *without)
    assert {line["eval"] for line in read_jsonl(third.path("retention", "base.jsonl"))} >= {
        "two/say",
        "one/odd",
        "one/say",
    }


def test_a_run_that_is_not_there_or_not_finished_or_of_another_base(guarded):
    second_job("runs/none")
    with pytest.raises(ConfigError, match=r"second.yaml:1: pipeline.continue_from: runs/none holds no run"):
        run_second()
    first = run()
    stages = first.manifest["stages"]
    tuned = stages.pop("eval_tuned")
    first.update()
    second_job()
    with pytest.raises(ConfigError, match="runs/one is not finished; finish it with: alfine run job.yaml --name one"):
        run_second()
    stages["eval_tuned"] = tuned
    first.update(base_model="other/model")
    with pytest.raises(ConfigError, match="write base_model: other/model"):
        run_second()


def test_the_curve_is_measured_and_a_spent_budget_ends_the_training(guarded):
    watched = run("one", "pipeline.forgetting.eval_steps=1", "trainer.epochs=3", "trainer.batch_size=16")
    training = json.loads(watched.path("model", "training.json").read_text())
    assert [entry["step"] for entry in training["retention"]] == list(range(1, training["steps"] + 1))
    assert "stopped_by_retention" not in training
    drift = [entry["scores"]["answers"] for entry in training["retention"]]
    budget = (drift[0] + drift[1]) / 2
    stopped = run(
        "two",
        "pipeline.forgetting.eval_steps=1",
        f"pipeline.forgetting.max_regression.answers={budget}",
        "trainer.epochs=3",
        "trainer.batch_size=16",
    )
    found = json.loads(stopped.path("model", "training.json").read_text())
    assert found["stopped_by_retention"] == {"evals": ["answers"], "step": 2} and found["steps"] == 2
    # The weights are those of the last measurement within the budget.
    left = [line["score"] for line in read_jsonl(stopped.path("retention", "tuned.jsonl")) if line["eval"] == "answers"]
    assert sum(left) / len(left) == pytest.approx(drift[0], rel=1e-3)


def test_another_teacher_teaches_and_a_strange_one_is_refused(guarded):
    make_model(Path("teacher"), seed=5)
    make_model(Path("strange"), "no_template")
    taught = run(
        "one",
        "pipeline.forgetting.strategy=distill",
        "pipeline.forgetting.distill={apply_to: task, teacher: ./teacher, top_k: 8}",
    )
    steps = json.loads(taught.path("model", "training.json").read_text())["forgetting"]
    assert all(entry["distill on tasks"] > 0 for entry in steps)
    make_model(Path("strange"), "sentencepiece")
    with pytest.raises(ModelError, match="has another tokenizer than the base"):
        run(
            "two",
            "pipeline.forgetting.strategy=distill",
            "pipeline.forgetting.distill={apply_to: task, teacher: ./strange}",
        )


def test_an_importance_file_of_another_model_is_refused(guarded):
    from pipelines.errors import RunError
    from pipelines.forgetting.importance import load_importance, save_importance

    save_importance(Path("x.safetensors"), {"a": torch.ones(2)}, "one model")
    assert torch.equal(load_importance(Path("x.safetensors"), "one model")["a"], torch.ones(2))
    with pytest.raises(RunError, match="x.safetensors: was measured on another model"):
        load_importance(Path("x.safetensors"), "another")
    Path("y.safetensors").write_bytes(b"half a file")
    with pytest.raises(RunError, match="is no importance file"):
        load_importance(Path("y.safetensors"), "one model")
