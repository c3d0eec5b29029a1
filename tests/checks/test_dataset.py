"""Findings about the rows of a job before training."""

import json

import pytest

from pipelines.checks.dataset import DatasetChecks
from pipelines.checks.findings import raise_on_errors
from pipelines.config.job import load_job
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples
from pipelines.errors import DataError
from tests.tiny_tokenizers import make_tokenizer


def findings(tmp_path, rows, kind="pad_is_eos", limit=200, metric="exact_match", **config):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(tmp_path / "rows.jsonl"), "prompt": "{q}", "completion": "{a}", "metric": metric}
    (tmp_path / "job.yaml").write_text(
        json.dumps({"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": task}}, **config})
    )
    job = load_job(tmp_path / "job.yaml")
    prompt_format = PromptFormat(make_tokenizer(kind))
    checks = DatasetChecks(job, prompt_format, limit)
    assert sum(1 for _ in checks.observe_all(tokenize_examples(load_examples(job.pipeline), prompt_format))) == len(
        rows
    )
    return checks.findings()


def good_rows():
    splits = ["train", "train", "validation", "validation", "test", "test"]
    return [{"q": f"q{index}", "a": "yn"[index % 2], "split": split} for index, split in enumerate(splits)]


def test_good_rows_have_no_findings(tmp_path):
    assert findings(tmp_path, good_rows()) == []


@pytest.mark.parametrize(
    ("row", "change", "severity", "message"),
    [
        (0, {"q": "x" * 300}, "error", "rows.jsonl:1: task t: is longer than the limit of 200 tokens"),
        (0, {"q": "a<|im_end|>b"}, "error", "contains a control token"),
        (
            4,
            {"q": "q0"},
            "warning",
            "rows.jsonl:5: task t: train/test overlap: the prompt of this test row is also in the "
            "training split, so the score would measure memorization",
        ),
        (
            4,
            {"q": " q0\n"},
            "warning",
            "rows.jsonl:5: task t: train/test overlap: the prompt of this test row is also in the training",
        ),
        (
            5,
            {"q": "q0"},
            "warning",
            "measure memorization; 1 of them have a different completion there, so one of the two is wrong",
        ),
    ],
)
def test_bad_rows(tmp_path, row, change, severity, message):
    rows = good_rows()
    rows[row].update(change)
    reported = findings(tmp_path, rows)
    assert any(message in str(finding.problem) and finding.severity == severity for finding in reported), reported


def test_rows_that_are_too_long_are_counted(tmp_path):
    rows = [{**row, "q": row["q"] * 99} for row in good_rows()]
    reported = findings(tmp_path, rows, preprocessing={"global_max_sequence_length": 100})
    assert "(6 such rows)" in str(reported[0].problem) and "limit of 100" in str(reported[0].problem)
    with pytest.raises(DataError, match="shorten or drop"):
        raise_on_errors(reported)


def test_a_single_label(tmp_path):
    rows = [{**row, "a": "y"} for row in good_rows()]
    assert "every train row has the label 'y'" in str(findings(tmp_path, rows)[0].problem)


def test_unit_tests_need_tests(tmp_path):
    with pytest.raises(DataError, match="rows.jsonl:5: task t: metric unit_tests needs a column `tests`.*2 such rows"):
        findings(tmp_path, good_rows(), metric="unit_tests")


def test_duplicate_bos(tmp_path):
    rows = good_rows()
    rows[0]["q"] = "<bos><bos>x"
    assert any("starts with <bos> twice" in str(f.problem) for f in findings(tmp_path, rows, kind="adds_bos"))


def test_missing_validation_rows(tmp_path):
    rows = [row for row in good_rows() if row["split"] != "validation"]
    reported = findings(tmp_path, rows)
    assert [f.severity for f in reported] == ["warning"] and "no validation rows" in str(reported[0].problem)


def test_metrics_and_labels_are_checked(tmp_path, monkeypatch):
    rows = good_rows()
    rows[4]["a"], rows[5]["a"] = "maybe", "Y"
    reported = findings(tmp_path, rows)
    assert [f.severity for f in reported] == ["warning", "warning"]
    assert "count as one label: 'y' and 'Y'" in str(reported[0].problem)
    assert "a label of the test rows has no training row: 'maybe' (1 row)" in str(reported[1].problem)

    (tmp_path / "counts_words.py").write_text("def f(completion, reference, row): return 1 / len(completion.split())\n")
    monkeypatch.chdir(tmp_path)
    (reported,) = findings(tmp_path, good_rows(), metric="counts_words:f")
    assert reported.severity == "error" and "metric counts_words:f raised ZeroDivisionError" in str(reported.problem)
