"""Labels of a task: spelling, labels that are never trained, and dominant labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.checks.metrics import MetricChecks
from pipelines.config.job import load_job
from pipelines.data.examples import load_examples
from tests.checks.labeled_jobs import GOOD_ROWS, check, labeled_rows, write_job


def test_good_labels_have_no_findings(tmp_path: Path) -> None:
    assert check(write_job(tmp_path, GOOD_ROWS)) == (0, "")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Polish polish a", "a polish"),
        ("straße a b", "STRASSE a"),
        ("正面。 a b", "正面 a"),
        ("cafe\u0301 a", "CAFÉ a"),
    ],
)
def test_spellings_of_one_label(tmp_path: Path, train: str, test: str) -> None:
    code, output = check(write_job(tmp_path, labeled_rows(train, test)))
    first = train.split()[0]
    assert code == 0
    assert f"task t: labels that are equal after normalization count as one label: {first!r} and" in output
    assert "use one spelling per label, or write normalize: false if they are different labels" in output
    if "e\u0301" not in train:
        assert check(write_job(tmp_path, labeled_rows(train, test), normalize=False))[1].count("as one label") == 0


def test_unicode_normalization_forms_are_one_label(tmp_path: Path) -> None:
    _, output = check(write_job(tmp_path, labeled_rows("cafe\u0301 café a", "a café"), normalize=False))
    assert "count as one label: 'cafe\u0301' and 'café'" in output


def test_labels_without_training_rows(tmp_path: Path) -> None:
    code, output = check(write_job(tmp_path, labeled_rows("a b a b", "a c c d B")))
    assert code == 0 and output.count("warning:") == 2
    assert (
        "task t: 2 labels of the test rows have no training row: 'c' (2 rows), 'd' (1 row); the model cannot learn them"
        in output
    )
    checks = MetricChecks(read := load_job(tmp_path / "job.yaml"))
    for example in load_examples(read.pipeline):
        checks.observe(example)
    assert checks.notes("t")[1] == "2 labels of the test rows have no training row: 'c' (2 rows), 'd' (1 row)."


def test_a_long_list_of_labels_is_cut(tmp_path: Path) -> None:
    _, output = check(write_job(tmp_path, labeled_rows("a b", " ".join("cdefghij"))))
    assert "8 labels of the test rows have" in output and "'g' (1 row) and 3 more;" in output


def test_dominant_label(tmp_path: Path) -> None:
    _, output = check(write_job(tmp_path, labeled_rows("a " * 38 + "b b", "a b")))
    assert "task t: 38 of 40 train rows have the label 'a'; a model that always predicts it" in output


@pytest.mark.parametrize("train", ["a a", "a A a."])
def test_a_single_label_is_an_error(tmp_path: Path, train: str) -> None:
    code, output = check(write_job(tmp_path, labeled_rows(train, "a b")))
    assert code == 2 and "every train row has the label 'a'; there is nothing to learn" in output


def test_multilabel_sets_are_split(tmp_path: Path) -> None:
    labels = [("train", "a, b"), ("train", "b,c"), ("test", "c, a"), ("test", "d, a")]
    code, output = check(write_job(tmp_path, labels, metric="multilabel_f1"))
    assert (
        code == 0
        and output.count("warning:") == 1
        and "a label of the test rows has no training row: 'd' (1 row)" in output
    )
