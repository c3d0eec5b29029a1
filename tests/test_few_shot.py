"""Runs on a tiny model: the base with examples in its prompt, what the model is given, the cache, the report."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config.job import load_job
from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.evaluator import LocalEvaluator
from pipelines.storage.files import read_jsonl
from pipelines.storage.run_folder import Run
from tests.jobs import run
from tests.tiny import make_model

pytestmark = pytest.mark.ludwig


@pytest.fixture
def given(monkeypatch):
    """The prompts of every call of `complete`, in order."""
    calls = []
    complete = LocalEvaluator.complete

    def record(self, prompts, *arguments, **values):
        calls.append([list(prompt) for prompt in prompts])
        return complete(self, prompts, *arguments, **values)

    monkeypatch.setattr(LocalEvaluator, "complete", record)
    return calls


def few_shot_call(calls):
    """The prompts of the base's test rows with examples: those after its sample prompts and its test rows."""
    return calls[2]


@pytest.mark.parametrize("kind", ["pad_is_eos", "no_template"])
def test_preview_shows_what_the_model_is_given(project, given, kind):
    make_model(project / "base", kind)
    result = run()
    prompts = few_shot_call(given)
    assert len(prompts) == len(read_jsonl(result.path("base", "completions.jsonl"))) == 15
    decode = PromptFormat.from_folder(project / "base").tokenizer.decode
    output = CliRunner().invoke(main, ["preview", "job.yaml", "--rows", "0", "--full"]).output
    for task, index in (("odd", 0), ("say", 13)):
        start = output.index(f"{task}  ")
        assert "base with 4 examples in the prompt" in output[start:].splitlines()[0]
        shown = [text[4:] for text in output[start:].splitlines()[1:] if re.match("    |  > ", text)]
        expected = decode(prompts[index])
        squeezed = "".join("".join(shown).replace("⏎", "").split())
        assert squeezed.startswith("".join(expected.split())), (shown, expected)


def test_the_examples_are_training_rows_with_all_labels(project, given):
    result = run()
    tasks = {task["task"]: task for task in read_jsonl(result.path("few_shot", "tasks.jsonl"))}
    rows = [json.loads(text) for text in Path("odd.jsonl").read_text().splitlines()]
    examples = [rows[int(place.rsplit(":")[-1]) - 1] for place in tasks["odd"]["examples"]]
    assert {row["split"] for row in examples} == {"train"} and len(examples) == 4
    assert sorted(row["a"] for row in examples) == ["no", "no", "yes", "yes"]
    text = PromptFormat.from_folder(project / "base").tokenizer.decode(few_shot_call(given)[0])
    assert [text.index(row["q"]) for row in examples] == sorted(text.index(row["q"]) for row in examples)


def test_completions_after_examples_are_cached_for_other_runs(project, monkeypatch):
    run()
    loaded = []
    load = LoadedModel.from_folder.__func__
    monkeypatch.setattr(
        LoadedModel, "from_folder", classmethod(lambda cls, *a, **k: loaded.append(a) or load(cls, *a, **k))
    )
    # Another seed, and another strategy, as in a sweep
    second = run("two", "pipeline.seed=7", "pipeline.forgetting.strategy=l2sp")
    assert len(loaded) == 1  # for the tuned model
    for name in ("completions.jsonl", "tasks.jsonl"):
        assert second.path("few_shot", name).read_text() == Path("runs/one/few_shot", name).read_text()
    third = run("three", "pipeline.report.seed=1")
    assert third.path("few_shot", "tasks.jsonl").read_text() != second.path("few_shot", "tasks.jsonl").read_text()


def test_tasks_with_and_without_examples(project):
    result = run("one", "pipeline.tasks.odd.few_shot=0")
    report = json.loads(result.path("report.json").read_text())
    assert report["tasks"]["odd"]["few_shot"] is None and report["tasks"]["say"]["few_shot"]["k"] == 4
    assert {example["task"]: example["few_shot"] is None for example in report["examples"]} == {
        "odd": True,
        "say": False,
    }
    off = run("one", "pipeline.report.few_shot=0", "pipeline.tasks.odd.few_shot=0")
    report = json.loads(off.path("report.json").read_text())
    assert report["worth_of_tuning"] == [] and not off.path("few_shot", "completions.jsonl").read_text()


def test_a_comparison_of_two_runs_has_the_examples_of_the_second(project):
    run()
    second = run("two", "pipeline.seed=7", "trainer.learning_rate=0.05")
    assert CliRunner().invoke(main, ["compare", "runs/one", "runs/two"]).exit_code == 0
    report = json.loads(Path("runs/one-vs-two/report.json").read_text())
    own = json.loads(second.path("report.json").read_text())
    for key in ("few_shot", "tuned", "delta"):
        assert report["tasks"]["odd"]["few_shot"][key] == own["tasks"]["odd"]["few_shot"][key]
    assert report["worth_of_tuning"]
    assert all(sentence.startswith("two is ") for sentence in report["worth_of_tuning"])


def test_more_examples_than_training_rows(project):
    rows = [{"q": f"q{n}", "a": "yn"[n % 2], "split": split} for n, split in enumerate(["train"] * 3 + ["test"] * 6)]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("one", "pipeline.report.few_shot=8")
    report = json.loads(result.path("report.json").read_text())
    assert report["tasks"]["odd"]["few_shot"]["k"] == 3
    note = "3 examples in the prompt instead of 8: the task has no more training rows."
    assert note in report["tasks"]["odd"]["caveats"]


def test_the_number_of_examples_is_chosen_on_training_rows(project, given):
    rows = [{"q": f"{number}?", "a": "yes" if number % 2 else "no", "split": "train"} for number in range(40)]
    with Path("odd.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    result = run("one", "pipeline.report.few_shot=[1,3]")
    tasks = {task["task"]: task for task in read_jsonl(result.path("few_shot", "tasks.jsonl"))}
    chosen = tasks["odd"]
    assert chosen["k"] in (1, 3) and "the best of 2 numbers on" in chosen["notes"][0]
    trials, prompts = given[2], given[3]
    test_rows = read_jsonl(result.path("base", "completions.jsonl"))
    assert len(prompts) == len(test_rows) and len(trials) > 2 * 8
    decode = PromptFormat.from_folder(project / "base").tokenizer.decode
    questions = [row["prompt"] for row in test_rows if row["task"] == "odd"]
    assert not any(
        decode(prompt).rstrip().endswith(f"{question}<|im_end|>") for prompt in trials for question in questions
    )
    report = json.loads(result.path("report.json").read_text())
    assert any("the best of 2 numbers" in note for note in report["tasks"]["odd"]["caveats"])
    assert report["tasks"]["odd"]["few_shot"]["k"] == chosen["k"]
    calls = len(given)
    overrides = ["pipeline.report.few_shot=[1,3]", "pipeline.seed=7"]
    output = CliRunner().invoke(main, ["run", "job.yaml", "--name", "two", *overrides]).output
    assert "the best of 2 numbers" in " ".join(output.split())
    second = Run(Path("runs/two"))
    assert second.path("few_shot", "tasks.jsonl").read_text() == result.path("few_shot", "tasks.jsonl").read_text()
    assert not any(len(prompts) == len(trials) for prompts in given[calls:])  # from the cache
    run("three", "pipeline.report.few_shot=[1,3]", "pipeline.tasks.odd.normalize=false")
    assert any(len(prompts) == len(trials) for prompts in given[calls:])  # another metric may choose another number


def test_the_base_with_an_instruction_only(project, given):
    result = run("one", "pipeline.report.few_shot={k: 0, instruction: the tea}", "pipeline.tasks.say.few_shot=1")
    text = PromptFormat.from_folder(project / "base").tokenizer.decode(few_shot_call(given)[0])
    assert text.startswith("<|im_start|>system\nthe tea<|im_end|>\n<|im_start|>user\nis ")
    report = json.loads(result.path("report.json").read_text())
    few_shot = {name: task["few_shot"] for name, task in report["tasks"].items()}
    assert (few_shot["odd"]["k"], few_shot["odd"]["instruction"]) == (0, "the tea")
    assert (few_shot["say"]["k"], few_shot["say"]["instruction"]) == (1, None)


def test_the_gate_needs_examples(project):
    gate = "pipeline.report.gates={odd: {min_gain_beyond_few_shot: 1}}"
    result = CliRunner().invoke(main, ["check", "job.yaml", gate, "pipeline.tasks.odd.few_shot=0"])
    assert result.exit_code == 2 and "min_gain_beyond_few_shot needs examples in the prompt" in result.output
    assert load_job(Path("job.yaml"), [gate]).pipeline.report.gates["odd"].min_gain_beyond_few_shot == 1
