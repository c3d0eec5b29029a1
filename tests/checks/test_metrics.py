"""Metrics of tasks and retention evals, before a model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.checks.labeled_jobs import GOOD_ROWS, check, write_job


@pytest.mark.parametrize(
    ("metric", "value"), [("rouge", False), ("rouge", True), ("chrf", False), ("multilabel_f1", False)]
)
def test_normalize_needs_a_metric_of_labels(tmp_path: Path, metric: str, value: bool) -> None:
    code, output = check(write_job(tmp_path, GOOD_ROWS, metric=metric, normalize=value))
    assert code == 2
    assert f"pipeline.tasks.t.normalize: it has no effect on the metric {metric}, only on exact_match" in output


def test_normalize_is_a_boolean(tmp_path: Path) -> None:
    assert (
        "pipeline.tasks.t.normalize: expected true or false, found 1"
        in check(write_job(tmp_path, GOOD_ROWS, normalize=1))[1]
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("judge", None)
    yield tmp_path
    sys.modules.pop("judge", None)


def test_a_custom_metric_is_tried_on_a_test_row(project: Path) -> None:
    (project / "judge.py").write_text(
        "def f(completion, reference, row): return row['weight'] * (completion == reference)\n"
    )
    code, output = check(write_job(project, GOOD_ROWS, metric="judge:f"))
    assert code == 2
    assert output.startswith(
        f"error: {project}/rows.jsonl:5: task t: metric judge:f raised KeyError: 'weight', for this row's"
    )
    assert output.count("\n") == 1


def test_a_custom_metric_may_return_numpy_scalars(project: Path) -> None:
    body = "import numpy as np\ndef f(completion, reference, row): return np.bool_(completion == reference)\n"
    (project / "judge.py").write_text(body)
    assert check(write_job(project, GOOD_ROWS, metric="judge:f")) == (0, "")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("rogue", "retention eval kept: unknown metric 'rogue'; did you mean rouge?"),
        (
            "nll",
            "retention eval kept: metric nll is not available here; for the loss of texts write kind: text_nll",
        ),
        ("judge:g", "retention eval kept: metric judge:g: module 'judge' has no function 'g'"),
        (
            "judge:f",
            "rows.jsonl:1: retention eval kept: metric judge:f returned None, not a finite number, for this row's "
            "reference",
        ),
    ],
)
def test_metrics_of_retention_evals(project: Path, metric: str, message: str) -> None:
    (project / "judge.py").write_text("def f(completion, reference, row): pass\n")
    settings = {"kind": "task", "data": "rows.jsonl", "prompt": "{q}", "completion": "{a}", "metric": metric}
    code, printed = check(write_job(project, GOOD_ROWS, forgetting={"strategy": "none", "evals": {"kept": settings}}))
    assert code == 2 and message in printed and printed.count("\n") == 1
