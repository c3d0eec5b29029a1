"""Each reference of a test row is scored as a completion; the cause of a lower score is reported."""

import json

import pytest

from pipelines.checks.dataset import DatasetChecks
from pipelines.checks.references import ReferenceChecks
from pipelines.config.job import load_job
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples
from tests.tiny_tokenizers import make_tokenizer


def findings(
    tmp_path, monkeypatch, answers, metric="exact_match", kind="pad_is_eos", context=512, max_new_tokens=32, **fields
):
    """The findings if `answers` are the references of the test rows, each as (severity, row, message)."""
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"{index}?", "a": answer, "split": "test", **fields} for index, answer in enumerate(answers)]
    rows += [{"q": f"t{index}?", "a": "yn"[index % 2], "split": "train", **fields} for index in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "data": "rows.jsonl",
        "prompt": "{q}",
        "completion": "{a}",
        "metric": metric,
        "max_new_tokens": max_new_tokens,
    }
    config = {"pipeline": {"tasks": {"t": task}}, "base_model": "smollm2-135m-instruct", "adapter": {"type": "lora"}}
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    job = load_job(tmp_path / "job.yaml")
    prompt_format = PromptFormat(make_tokenizer(kind))
    checks = ReferenceChecks(job, prompt_format, context)
    for row in tokenize_examples(load_examples(job.pipeline), prompt_format):
        checks.observe(row)
    results = list(checks.findings())
    return [(finding.severity, finding.problem.line, finding.problem.message) for finding in results]


@pytest.mark.parametrize("metric", ["exact_match", "rouge", "chrf", "nll"])
@pytest.mark.parametrize("kind", ["pad_is_eos", "adds_bos", "no_template", "sentencepiece"])
def test_reachable_references_have_no_findings(tmp_path, monkeypatch, metric, kind):
    assert findings(tmp_path, monkeypatch, ["yes", "no", "maybe so"], metric, kind) == []


def test_a_label_longer_than_max_new_tokens(tmp_path, monkeypatch):
    results = findings(tmp_path, monkeypatch, ["yes", "absolutely not", "certainly"], max_new_tokens=8)
    assert results == [
        (
            "error",
            2,
            "task t: the reference is longer than max_new_tokens 8, where a completion is cut: "
            "write max_new_tokens: 15 "
            "(1 of 3 test rows)",
        )
    ]
    assert findings(tmp_path, monkeypatch, ["yes", "absolutely not", "certainly"], max_new_tokens=15) == []


def test_the_context_limits_completions(tmp_path, monkeypatch):
    results = findings(tmp_path, monkeypatch, ["yes", "absolutely not"], context=30)
    assert [(severity, row) for severity, row, _ in results] == [("error", 2)]


def test_a_long_reference_is_a_warning_for_a_graded_metric(tmp_path, monkeypatch):
    results = findings(
        tmp_path, monkeypatch, ["a fine day", "a very long summary of a very long text"], "rouge", max_new_tokens=16
    )
    assert [(severity, row) for severity, row, _ in results] == [("warning", 2)]
    every = findings(
        tmp_path, monkeypatch, ["a very long summary of it", "another very long one"], "rouge", max_new_tokens=8
    )
    assert [severity for severity, *_ in every] == ["error"]  # no completion can reach the full score


def test_special_tokens_are_stripped(tmp_path, monkeypatch):
    results = findings(tmp_path, monkeypatch, ["yes", "no<|im_end|> really"])
    assert results == [
        (
            "error",
            2,
            "task t: the reference contains special tokens (<|im_end|>), which are stripped from completions; "
            "remove them "
            "(1 of 2 test rows)",
        )
    ]


def test_characters_without_tokens(tmp_path, monkeypatch):
    """The SentencePiece-like tokenizer has ASCII only; the others have bytes."""
    results = findings(tmp_path, monkeypatch, ["yes", "日本"], kind="sentencepiece")
    assert [(severity, row) for severity, row, _ in results] == [("error", 2)]
    assert "this model's tokenizer cannot represent it" in results[0][2]
    assert findings(tmp_path, monkeypatch, ["yes", "日本"]) == []


def test_the_full_score_of_a_custom_metric(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def half(completion, reference, row):\n    return 50 * (completion == reference)\n"
    )
    assert findings(tmp_path, monkeypatch, ["yes", "no"], "mine:half") == []
    results = findings(tmp_path, monkeypatch, ["yes", "absolutely not"], "mine:half", max_new_tokens=6)
    assert [row for _, row, _ in results] == [2] and "max_new_tokens: 15" in results[0][2]


@pytest.mark.usefixtures("compiled_sandbox")
def test_code_that_fails_its_own_tests(tmp_path, monkeypatch):
    good, bad = "def f(x):\n    return x + 1", "def f(x):\n    return x - 1"
    tests = {"tests": ["assert f(1) == 2", "assert f(2) == 3"]}
    results = findings(tmp_path, monkeypatch, [good, bad], "unit_tests", max_new_tokens=64, **tests)
    (severity, row, message), *further_findings = results
    assert not further_findings and severity == "warning" and row == 2
    assert message.startswith(
        "task t: the reference gets 0 of 100 as a completion: 0 of 2 tests pass; assert f(1) == 2: got 0"
    )
    assert findings(tmp_path, monkeypatch, [bad, bad], "unit_tests", max_new_tokens=64, **tests)[0][0] == "error"


def test_retention_evals_of_kind_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.jsonl").write_text('{"q": "a?", "a": "yes"}\n{"q": "b?", "a": "absolutely not"}\n')
    (tmp_path / "rows.jsonl").write_text('{"q": "a?", "a": "y"}\n')
    settings = {
        "kind": "task",
        "data": "eval.jsonl",
        "prompt": "{q}",
        "completion": "{a}",
        "metric": "exact_match",
        "max_new_tokens": 8,
    }
    task = {"data": "rows.jsonl", "prompt": "{q}", "completion": "{a}"}
    config = {
        "pipeline": {"tasks": {"t": task}, "forgetting": {"evals": {"mine": settings}}},
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    checks = DatasetChecks(load_job(tmp_path / "job.yaml"), PromptFormat(make_tokenizer("pad_is_eos")), 512)
    (finding,) = checks.references.findings()
    assert finding.severity == "error" and str(finding.problem) == (
        "eval.jsonl:2: retention eval mine: the reference is longer than max_new_tokens 8, where a completion is "
        "cut: write max_new_tokens: 15 (1 of 2 rows)"
    )
