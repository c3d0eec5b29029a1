"""What rows say about their scores before anything is trained, through `alfine check`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.checks.metrics import MetricChecks
from pipelines.cli import main
from pipelines.config.job import load_job
from pipelines.data.examples import load_examples


def job(folder: Path, labels: Sequence[tuple[str, str]], forgetting: Any = "none", **task: Any) -> Path:
    """A config over rows with these splits and labels."""
    rows = [{"q": f"q{n}", "a": label, "split": split} for n, (split, label) in enumerate(labels)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {
        "t": {"data": str(folder / "rows.jsonl"), "prompt": "{q}", "completion": "{a}", "metric": "exact_match", **task}
    }
    config = {
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora"},
        "trainer": {"type": "finetune"},
        "pipeline": {"tasks": tasks, "forgetting": forgetting},
    }
    (folder / "job.yaml").write_text(json.dumps(config))
    return folder / "job.yaml"


def check(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr


def rows(train: str, test: str) -> list[tuple[str, str]]:
    return [*(("train", label) for label in train.split()), *(("test", label) for label in test.split())]


GOOD = rows("a b a b", "a b")


def test_sound_labels_are_not_spoken_of(tmp_path: Path) -> None:
    assert check(job(tmp_path, GOOD)) == (0, "")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Polish polish a", "a polish"),
        ("straße a b", "STRASSE a"),
        ("正面。 a b", "正面 a"),
        ("cafe\u0301 a", "CAFÉ a"),
    ],
)
def test_labels_that_count_as_one(tmp_path: Path, train: str, test: str) -> None:
    code, said = check(job(tmp_path, rows(train, test)))
    first = train.split()[0]
    assert code == 0
    assert f"task t: labels that are equal after normalization count as one label: {first!r} and" in said
    assert "use one spelling per label, or write normalize: false if they are different labels" in said
    if "e\u0301" not in train:
        assert check(job(tmp_path, rows(train, test), normalize=False))[1].count("as one label") == 0


def test_unicode_normalisation_is_one_label_however_written(tmp_path: Path) -> None:
    _, said = check(job(tmp_path, rows("cafe\u0301 café a", "a café"), normalize=False))
    assert "count as one label: 'cafe\u0301' and 'café'" in said


def test_labels_of_test_rows_that_no_training_row_has(tmp_path: Path) -> None:
    code, said = check(job(tmp_path, rows("a b a b", "a c c d B")))
    assert code == 0 and said.count("warning:") == 2
    assert (
        "task t: 2 labels of the test rows have no training row: 'c' (2 rows), 'd' (1 row); the model cannot learn them"
        in said
    )
    checks = MetricChecks(read := load_job(tmp_path / "job.yaml"))
    for example in load_examples(read.pipeline):
        checks.observe(example)
    assert checks.notes("t")[1] == "2 labels of the test rows have no training row: 'c' (2 rows), 'd' (1 row)."


def test_many_labels_are_counted_and_some_named(tmp_path: Path) -> None:
    _, said = check(job(tmp_path, rows("a b", " ".join("cdefghij"))))
    assert "8 labels of the test rows have" in said and "'g' (1 row) and 3 more;" in said


def test_one_label_for_nearly_all_rows(tmp_path: Path) -> None:
    _, said = check(job(tmp_path, rows("a " * 38 + "b b", "a b")))
    assert "task t: 38 of 40 train rows have the label 'a'; a model that always predicts it" in said


@pytest.mark.parametrize("train", ["a a", "a A a."])
def test_one_label_for_all_rows_is_refused(tmp_path: Path, train: str) -> None:
    code, said = check(job(tmp_path, rows(train, "a b")))
    assert code == 2 and "every train row has the label 'a'; there is nothing to learn" in said


def test_sets_of_labels_are_taken_apart(tmp_path: Path) -> None:
    labels = [("train", "a, b"), ("train", "b,c"), ("test", "c, a"), ("test", "d, a")]
    code, said = check(job(tmp_path, labels, metric="multilabel_f1"))
    assert (
        code == 0
        and said.count("warning:") == 1
        and "a label of the test rows has no training row: 'd' (1 row)" in said
    )


@pytest.mark.parametrize(
    ("metric", "value"), [("rouge", False), ("rouge", True), ("chrf", False), ("multilabel_f1", False)]
)
def test_normalize_goes_with_labels(tmp_path: Path, metric: str, value: bool) -> None:
    code, said = check(job(tmp_path, GOOD, metric=metric, normalize=value))
    assert code == 2
    assert (
        f"pipeline.tasks.t.normalize: it says how the metric exact_match compares labels; the metric here is {metric}: take"
        in said
    )


def test_normalize_is_true_or_false(tmp_path: Path) -> None:
    assert "pipeline.tasks.t.normalize: expected true or false, found 1" in check(job(tmp_path, GOOD, normalize=1))[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("judge", None)
    yield tmp_path
    sys.modules.pop("judge", None)


def test_a_metric_of_ones_own_is_called_before_training(project: Path) -> None:
    (project / "judge.py").write_text(
        "def f(completion, reference, row): return row['weight'] * (completion == reference)\n"
    )
    code, said = check(job(project, GOOD, metric="judge:f"))
    assert code == 2
    assert said.startswith(
        f"error: {project}/rows.jsonl:5: task t: metric judge:f raised KeyError: 'weight', for this row's"
    )
    assert said.count("\n") == 1


def test_a_metric_with_numpy_is_fine(project: Path) -> None:
    body = "import numpy as np\ndef f(completion, reference, row): return np.bool_(completion == reference)\n"
    (project / "judge.py").write_text(body)
    assert check(job(project, GOOD, metric="judge:f")) == (0, "")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("rogue", "retention eval kept: unknown metric 'rogue'; did you mean rouge?"),
        (
            "nll",
            "retention eval kept: metric nll is not available here; for the loss of texts write kind: text_nll",
        ),
        ("judge:g", "retention eval kept: metric judge:g: module 'judge' has no function 'g'"),
        (
            "judge:f",
            "rows.jsonl:1: retention eval kept: metric judge:f returned None, not a finite number, for this row's reference",
        ),
    ],
)
def test_metrics_of_guards_are_looked_at_too(project: Path, metric: str, said: str) -> None:
    (project / "judge.py").write_text("def f(completion, reference, row): pass\n")
    guard = {"kind": "task", "data": "rows.jsonl", "prompt": "{q}", "completion": "{a}", "metric": metric}
    code, printed = check(job(project, GOOD, forgetting={"strategy": "none", "evals": {"kept": guard}}))
    assert code == 2 and said in printed and printed.count("\n") == 1


def test_check_imports_nothing_heavy(tmp_path: Path) -> None:
    """The metric is tried and the labels are counted without a library that takes seconds."""
    path = job(tmp_path, GOOD)
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import main; "
        f"assert CliRunner().invoke(main, ['check', {str(path)!r}]).exit_code == 0; "
        "print([name for name in ('torch', 'ludwig', 'nltk', 'sacrebleu') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
