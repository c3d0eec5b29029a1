"""Two models on the same prompts, on a tiny model: stored answers, new ones, plain models, what cannot be compared."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.storage.files import read_jsonl
from tests.jobs import run

pytestmark = pytest.mark.ludwig


def compare(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def two_runs(project):
    run()
    run("two", "pipeline.seed=7", "trainer.learning_rate=0.05")
    return project


def test_stored_completions_of_two_runs_are_compared(two_runs):
    result = compare("runs/one", "runs/two")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("runs/one-vs-two/report.json").read_text())
    assert report["models"] == ["one", "two"] and report["training"] is None
    answers = {
        name: [row["completion"] for row in read_jsonl(Path(f"runs/{name}/tuned/completions.jsonl"))]
        for name in ("one", "two")
    }
    assert [example["base"] for example in report["examples"]] == answers["one"]
    assert [example["tuned"] for example in report["examples"]] == answers["two"]
    assert report["tasks"]["odd"]["metric"] == "exact_match"


def test_comparison_of_a_run_with_its_base_equals_its_report(two_runs):
    assert compare("base", "runs/one", "--output", "again").exit_code == 0
    again = json.loads(Path("again/report.json").read_text())
    first = json.loads(Path("runs/one/report.json").read_text())
    for key in ("base", "tuned", "base_score", "tuned_score"):
        assert [example[key] for example in again["examples"]] == [example[key] for example in first["examples"]]
    losses = [report["tasks"]["odd"]["reference_nll"] for report in (again, first)]
    assert [losses[0]["base"], *losses[0]["ci95"]] == pytest.approx([losses[1]["base"], *losses[1]["ci95"]])


def test_raw_prompts_with_and_without_a_reference(two_runs):
    rows = [{"prompt": "the tea"}, {"prompt": "one", "reference": "two", "task": "odd", "nan": float("nan")}]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare("runs/one", "runs/two", "--prompts", "new.jsonl", "--metric", "chrf", "--raw")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("runs/one-vs-two/report.json").read_text())
    assert {name: (task["metric"], task["n"]) for name, task in report["tasks"].items()} == {"prompts": ("chrf", 1)}
    assert [sample["prompt"] for sample in report["sample_prompts"]] == ["the tea"]


def test_rows_of_tasks_with_and_without_a_reference(two_runs):
    rows = [
        {"task": "odd", "q": "is 3 odd", "a": "yes", "prompt": "x"},
        {"task": "odd", "q": "is 5 odd"},
        {"task": "say", "text": "the 3", "out": "a 3"},
    ]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare("runs/one", "runs/two", "--prompts", "new.jsonl")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("runs/one-vs-two/report.json").read_text())
    assert {name: (task["metric"], task["n"]) for name, task in report["tasks"].items()} == {
        "odd": ("exact_match", 1),
        "say": ("chrf", 1),
    }
    assert [sample["prompt"] for sample in report["sample_prompts"]] == ["is 5 odd?"]


def test_prompts_without_a_reference_are_not_scored(two_runs):
    Path("new.jsonl").write_text('{"prompt": "the tea"}\n')
    result = compare("./base", "./base", "--prompts", "new.jsonl")
    assert result.exit_code == 0 and "nothing is scored" in result.output
    assert "nothing is scored" in Path("runs/base-vs-base/report.html").read_text()


def test_a_table_of_runs_leaves_out_comparisons(two_runs):
    compare("runs/one", "runs/two")
    result = CliRunner().invoke(main, ["runs"])
    assert result.exit_code == 0 and "-vs-" not in result.output and result.output.count("odd") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./base", "./base"], "neither model is a run with test rows"),
        (["runs/one", "runs/none"], "no such folder"),
        (["runs/one", "runs/two", "--prompts", "none.jsonl"], "none.jsonl: no such file"),
        (["runs/one", "runs/two", "--prompts", "odd.jsonl", "--task", "even"], "has no task 'even'"),
        (["runs/one", "runs/two", "--metric", "rogue"], "did you mean rouge"),
        (["runs/one", "--prompts", "odd.jsonl"], "compare takes two models, not 1"),
        (["runs/one", "runs/two", "--task", "odd"], "--task applies to the rows of a file; add --prompts FILE"),
        (["runs/one", "runs/two", "--prompts", "odd.jsonl"], "odd.jsonl:1: the task is missing"),
        (["./base", "./base", "--prompts", "odd.jsonl", "--task", "odd"], "neither model is a run with tasks"),
        (
            ["./base", "./base", "--prompts", "odd.jsonl"],
            "odd.jsonl:1: a sample prompt needs a text in `prompt`; the row has: q, a, split",
        ),
        (["runs/one", "runs/two", "runs/one"], "compare takes two models, not 3"),
    ],
)
def test_errors_name_what_cannot_be_compared(project, arguments, message):
    run()
    shutil.copytree("runs/one", "runs/two")
    result = compare(*arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not list(Path("runs").glob("*.partial")) and not Path("runs/one-vs-two").exists()
