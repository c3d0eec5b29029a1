"""Runs of reasoning models: what is trained and prompted, that scores come from the answers, and cut thoughts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.job import load_job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import open_split, read_test_examples
from pipelines.errors import ConfigError
from pipelines.prediction.predict import predict
from pipelines.run import run_job
from pipelines.storage.run_folder import Run
from tests.jobs import QUIET

WORDS = ["tea", "the inn", "a gate", "nine"]
OVERFIT = {"epochs": 120, "learning_rate": 0.01, "optimizer": {"type": "adamw"}, "early_stop": -1}
LABELS = ["positive", "negative"]


def row(index: int, split: str, **values: Any) -> dict[str, Any]:
    label = LABELS[index % 2]
    thought = {"reasoning": f"It is {label}"}
    return {"q": f"{WORDS[index % 4]} {index}", "a": label, "split": split, **thought, **values}


def rows_of(**values: Any) -> list[dict[str, Any]]:
    splits = ["train"] * 12 + ["validation"] * 2 + ["test"] * 4
    return [row(index, split, **values) for index, split in enumerate(splits)]


Start = Callable[..., tuple[Any, Run]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """start(kind, rows, task keys, trainer keys) → (job, finished run)."""
    from tests.tiny import make_model  # torch: seconds that tests without a model do not need

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))

    def begin(
        kind: str, rows: list[dict[str, Any]], name: str = "one", pipeline: dict[str, Any] | None = None, **keys: Any
    ) -> tuple[Any, Run]:
        base = make_model(tmp_path / kind, kind)
        Path("rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        Path("probes.jsonl").write_text('{"prompt": "tea?", "max_new_tokens": 5}\n')
        trainer = {"epochs": 1, "batch_size": 6, "learning_rate": 0.01, **keys.pop("trainer", {})}
        task = {"data": "rows.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match"}
        limits = {"max_new_tokens": 12, "max_reasoning_tokens": 20}
        config = {
            "pipeline": {
                "tasks": {"mood": {**task, **limits, **keys}},
                "report": {"sample_prompts": "probes.jsonl"},
                "forgetting": {"strategy": "none", "evals": "none"},
                **(pipeline or {}),
            },
            "base_model": str(base),
            "trainer": trainer,
        }
        Path("job.yaml").write_text(json.dumps(config))
        job, run = load_job(Path("job.yaml")), Run(tmp_path / "runs" / name)
        run_job(job, run, "alfine run job.yaml", QUIET)
        return job, Run(run.folder)

    return begin


def texts_of(run: Run, job: Any) -> list[tuple[str, str]]:
    """The prompts and the supervised texts of the training rows."""
    tokenizer = PromptFormat.from_folder(Path(job.base_model), job.chat_template_settings()).tokenizer
    texts = []
    for entry in open_split(run.path("data"), "train").to_pylist():
        ((begin, end),) = entry["supervised_spans"]
        parts = (entry["input_ids"][:begin], entry["input_ids"][begin:end])
        texts.append(tuple(tokenizer.decode(ids, skip_special_tokens=False) for ids in parts))
    return sorted(texts)


def records(run: Run, which_model: str, file: str = "completions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.path(which_model, file).read_text().splitlines()]


USER = "<|im_start|>user\n{}?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("kind", ["qwen3_like", "r1_like"])
def test_rows_with_and_without_reasoning(start: Start, kind: str) -> None:
    rows = rows_of()
    for index in range(0, 18, 3):
        rows[index]["reasoning"] = [None, ""][index % 2]
    job, run = start(kind, rows, trainer={**OVERFIT, "epochs": 10})
    opened = "<think>\n" if kind == "r1_like" else ""
    expected = []
    for one in rows[:12]:
        written = f"<think>\n{one['reasoning'] or ''}\n</think>\n\n{one['a']}<|im_end|>"
        expected.append((USER.format(one["q"]) + opened, written.removeprefix(opened)))
    assert texts_of(run, job) == sorted(expected)
    assert run.manifest["data"]["mood"]["train_with_reasoning"] == 8
    test_rows = read_test_examples(run.path("data"), job)
    assert [one.example.max_new_tokens for one in test_rows] == [32] * 4
    assert sorted(one.example.completion for one in test_rows) == sorted(one["a"] for one in rows[14:])
    for which_model in ("base", "tuned"):
        for record in records(run, which_model):
            assert record["num_generated_tokens"] <= 32
            if kind == "r1_like":
                assert record["reasoning"] is not None, "the prompt opens a thought"
                assert record["reasoning_cut"] == (record["num_generated_tokens"] == 32 and not record["completion"])
        (probe,) = records(run, which_model, "sample_prompts.jsonl")
        assert probe["num_generated_tokens"] <= 5 + 1024
    Path("new.jsonl").write_text('{"q": "tea 3"}\n')
    (predicted,) = predict(run, ["new.jsonl"], None, QUIET)
    assert "prediction_reasoning" in predicted


@pytest.mark.parametrize(
    ("kwargs", "prompt_end", "limit"),
    [
        ({}, "<think>\n\n</think>\n\n", 12),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n", 12),
        ({"enable_thinking": True}, "", 12 + 1024),
    ],
)
def test_rows_without_reasoning_on_a_hybrid_model(
    start: Start, kwargs: dict[str, Any], prompt_end: str, limit: int
) -> None:
    rows = [{key: value for key, value in one.items() if key != "reasoning"} for one in rows_of()]
    job, run = start("qwen3_like", rows, max_reasoning_tokens=None, chat_template_kwargs=kwargs)
    written = "" if prompt_end else "<think>\n\n</think>\n\n"
    assert texts_of(run, job) == sorted(
        (USER.format(one["q"]) + prompt_end, f"{written}{one['a']}<|im_end|>") for one in rows[:12]
    )
    assert run.manifest["data"]["mood"]["train_with_reasoning"] is None
    assert {one.example.max_new_tokens for one in read_test_examples(run.path("data"), job)} == {limit}


def test_inline_thoughts_are_trained_once(start: Start) -> None:
    inline = [
        {**one, "a": f"<think>\nIt is {one['a']}\n</think>\n\n{one['a']}", "reasoning": None} for one in rows_of()
    ]
    _, run = start("qwen3_like", inline)
    job, other = start("qwen3_like", rows_of(), "other")
    assert texts_of(run, job) == texts_of(other, job)
    assert {record["reference"] for record in records(run, "base")} == set(LABELS)


def test_scores_come_from_the_answers_alone(start: Start) -> None:
    """The tuned model's thought has the right label, and its answer the wrong one."""
    rows = [row(index, "train", reasoning="It is negative", a="positive") for index in range(12)]
    rows += [row(12 + index, "test", reasoning="so", a=["negative", "other"][index % 2]) for index in range(2)]
    _, run = start("qwen3_like", rows, metric="rouge", trainer=OVERFIT)
    report = json.loads((run.folder / "report.json").read_text())
    assert [example["tuned"] for example in report["examples"]] == ["positive"] * 2
    assert [example["tuned_reasoning"] for example in report["examples"]] == ["It is negative"] * 2
    assert report["tasks"]["mood"]["tuned"] == 0
    assert report["tasks"]["mood"]["reasoning"]["tuned"]["completions"] == 2


def test_cut_thoughts_are_counted_and_flagged(start: Start) -> None:
    _, run = start("r1_like", rows_of(), metric="rouge", max_reasoning_tokens=30)
    cut = {which: sum(record["reasoning_cut"] for record in records(run, which)) for which in ("base", "tuned")}
    assert cut["base"], "a model with random weights does not close its thought"
    report = json.loads((run.folder / "report.json").read_text())
    caveats = " ".join(report["tasks"]["mood"]["caveats"])
    assert f"{cut['base']} of 4 base completions and {cut['tuned']} of 4 tuned completions were cut at 42" in caveats
    assert "Raise max_reasoning_tokens" in caveats


def test_a_model_without_markers_refuses_the_key_and_ignores_the_column(start: Start) -> None:
    _, run = start("pad_is_eos", rows_of())
    assert run.manifest["data"]["mood"]["train_with_reasoning"] is None
    assert any("the column reasoning is ignored" in warning for warning in run.manifest["warnings"])
    with pytest.raises(ConfigError, match="this model has no markers for reasoning"):
        start("pad_is_eos", rows_of(), "other", reasoning="{reasoning}")


def test_thinking_that_is_switched_off_and_rows_with_reasoning_contradict_each_other(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"job.yaml:\d+: task mood: its rows have reasoning, but .* ends the thought"):
        start("qwen3_like", rows_of(), chat_template_kwargs={"enable_thinking": False})
