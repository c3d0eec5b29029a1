"""Complete runs on a tiny model: stages, resume, cache, prediction."""

import io
import json
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from pipelines.config.job import load_job
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.conversation import Conversation
from pipelines.errors import RunError
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.forgetting import continual
from pipelines.prediction.predict import predict
from pipelines.run import run_job
from pipelines.storage.files import read_jsonl
from pipelines.storage.run_folder import Run
from tests.jobs import QUIET, run

pytestmark = pytest.mark.ludwig


def test_a_second_run_of_the_same_job_runs_no_stage(project):
    first = run()
    assert set(first.manifest["stages"]) == {
        "prepare",
        "eval_base",
        "eval_few_shot",
        "eval_base_retention",
        "train",
        "eval_tuned",
        "eval_tuned_retention",
        "report",
    }
    report = json.loads(first.path("report.json").read_text())
    assert report["tasks"]["odd"]["n"] == 13 and report["tasks"]["say"]["metric"] == "chrf"
    assert len(report["examples"]) == 15
    assert report["training"]["validation_loss"][0]["step"] == 0
    base, tuned = (read_jsonl(first.path(which, "completions.jsonl")) for which in ("base", "tuned"))
    assert [row["prompt"] for row in base] == [row["prompt"] for row in tuned]
    assert [row["reference_nll"] for row in base] != [row["reference_nll"] for row in tuned]
    assert not list(Path("runs").rglob("*.partial"))
    assert not [path for path in Path("runs").rglob("*") if path.suffix in (".pt", ".bin", ".pkl", ".ckpt")]
    assert run().manifest["stages"] == first.manifest["stages"]


def test_only_stages_with_changed_inputs_run_again(project):
    overrides = []
    stages = run().manifest["stages"]
    for override, expected in {
        "trainer.learning_rate=0.02": {"train", "eval_tuned", "eval_tuned_retention", "report"},
        "pipeline.tasks.odd.weight=2": {"train", "eval_tuned", "eval_tuned_retention", "report"},
        "pipeline.forgetting=l2sp": {"train", "eval_tuned", "eval_tuned_retention", "eval_base_retention", "report"},
        "pipeline.tasks.odd.max_new_tokens=5": {"prepare", "eval_base", "eval_few_shot", "eval_tuned", "report"},
        "pipeline.report.few_shot=2": {"eval_few_shot", "report"},
        "pipeline.report.test_rows=12": {"prepare", "eval_base", "eval_few_shot", "eval_tuned", "report"},
        "pipeline.tasks.say.metric=rouge": {"prepare", "report"},
        "pipeline.tasks.odd.normalize=false": {"prepare", "report"},
        "pipeline.report.gates={odd: {min_gain: -100}}": {"report"},
    }.items():
        overrides.append(override)
        after = run("one", *overrides).manifest["stages"]
        assert {stage for stage in stages if stages[stage]["inputs"] != after[stage]["inputs"]} == expected, override
        stages = after


def test_base_completions_are_cached_for_other_runs(project, monkeypatch):
    run()
    calls = []
    load = LoadedModel.from_folder.__func__
    monkeypatch.setattr(
        LoadedModel, "from_folder", classmethod(lambda cls, *a, **k: calls.append(a) or load(cls, *a, **k))
    )
    second = run("two", "pipeline.seed=7")
    assert len(calls) == 1
    assert second.path("base", "completions.jsonl").read_text() == Path("runs/one/base/completions.jsonl").read_text()


def test_an_interrupted_run_resumes(project, monkeypatch):
    uninterrupted = run("uninterrupted").path("tuned", "completions.jsonl").read_text()
    monkeypatch.setattr("pipelines.stages.report.write_report", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run("interrupted")
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setenv("ALFINE_CACHE", str(project / "cache"))
    trained = Run(Path("runs/interrupted")).manifest["stages"]["train"]
    resumed = run("interrupted")
    assert resumed.manifest["stages"]["train"] == trained
    assert resumed.path("tuned", "completions.jsonl").read_text() == uninterrupted


def test_the_same_rows_on_other_lines_are_not_read_from_the_cache(project):
    run()
    Path("odd.jsonl").write_text("\n" + Path("odd.jsonl").read_text())
    moved = run("two")
    rows = [line["row"] for line in read_jsonl(moved.path("base", "completions.jsonl")) if line["task"] == "odd"]
    assert rows[0] == 5 and moved.path("report.json").exists()


def test_a_run_folder_of_another_config_is_rejected(project):
    run()
    Path("other.yaml").write_text(Path("job.yaml").read_text())
    with pytest.raises(RunError, match=r"was created by job\.yaml"):
        run_job(load_job(Path("other.yaml")), Run(Path("runs/one")), "x", QUIET)


def test_predict_gives_the_completions_of_the_report(project):
    result = run()
    tuned = read_jsonl(result.path("tuned", "completions.jsonl"))
    rows = [{**row["fields"], "task": row["task"]} for row in tuned]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = predict(result, ["new.jsonl"], None, QUIET)
    assert [row["prediction"] for row in rows] == [row["completion"] for row in tuned]


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"q": "a"}, None, "the task is missing"),
        ({"q": "a", "task": "x"}, None, "the run has odd, say"),
        ({"z": 1}, "odd", "column {q}"),
        ({"q": "a"}, "x", "has no task 'x'"),
    ],
)
def test_rows_that_cannot_be_predicted(project, row, task, message):
    result = run()
    Path("new.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(Exception, match=message.replace("{", r"\{")):
        predict(result, ["new.jsonl"], task, QUIET)


def test_full_fine_tuning(project):
    config = json.loads(Path("job.yaml").read_text())
    del config["adapter"]
    Path("job.yaml").write_text(json.dumps(config))
    result = run("full")
    assert result.path("model", "model.safetensors").exists()
    assert json.loads(result.path("report.json").read_text())["training"]["trainable_parameters"] > 0


def test_batched_completions_equal_single_completions(project):
    loaded = LoadedModel.from_folder(Path("base"))
    prompts = [
        loaded.prompt_format.encode(Conversation.single_turn("the " * length)).prompt_ids for length in range(1, 6)
    ]
    batched = complete(loaded, prompts, {"do_sample": False}, [5] * 5)
    single = [complete(loaded, [ids], {"do_sample": False}, [5])[0] for ids in prompts]
    assert batched == single


def test_no_file_contains_secrets_of_the_environment(project, monkeypatch):
    secrets = {"HF_TOKEN": "hf_DoNotWriteMe123", "AWS_SECRET_ACCESS_KEY": "AlsoNotMe456", "WANDB_API_KEY": "NorMe789"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    folder = run().folder
    files = [path for path in [*folder.rglob("*"), *Path(project / "cache").rglob("*")] if path.is_file()]
    assert len(files) > 15
    for path in files:
        raw = path.read_bytes()
        assert not [name for name, value in secrets.items() if value.encode() in raw], path


def test_changed_data_files_are_reported(project):
    run()
    with Path("odd.jsonl").open("a") as file:
        file.write('{"q": "is 99 odd", "a": "yes", "split": "train"}\n')
    reporter = ConsoleReporter(Console(file=(output := io.StringIO()), width=300))
    run_job(load_job(Path("job.yaml")), Run(Path("runs/one")), "alfine run job.yaml", reporter)
    assert "odd.jsonl has changed since task odd was prepared" in output.getvalue()
    assert "say.csv has changed" not in output.getvalue()
    assert Run(Path("runs/one")).manifest["data"]["odd"]["train"] == 21


def test_a_run_continues_from_the_latest_model_of_an_earlier_run(project, monkeypatch):
    """An adapter is merged again if the earlier run has another one; `existing_starting_model` is what a run was trained from."""
    merged = []

    def merge(base, adapter, target):
        merged.append(adapter)
        target.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(continual, "_merge_adapter", merge)
    job = load_job(Path("job.yaml"))
    first = Run(Path("runs/first"))
    (first.folder / "model").mkdir(parents=True)
    (first.folder / "config.yaml").write_text(Path("job.yaml").read_text())
    first.update(base_model=job.base_model, stages={"eval_tuned": {"inputs": "", "seconds": 1}})
    (first.folder / "model" / "adapter_config.json").write_text("{}")
    second, goes_on = Run(Path("runs/second")), load_job(Path("job.yaml"), ["pipeline.continue_from=runs/first"])
    start = continual.prepare_starting_model(goes_on, second)
    assert continual.prepare_starting_model(goes_on, second) == start and len(merged) == 1
    (first.folder / "model" / "adapter_config.json").write_text('{"r": 2}')
    assert continual.existing_starting_model(goes_on, second) == start and len(merged) == 1
    assert continual.prepare_starting_model(goes_on, second) == start and len(merged) == 2
