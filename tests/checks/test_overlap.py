"""Test rows whose prompt is also in the training split."""

from pipelines.checks.overlap import TrainTestOverlap
from pipelines.data.examples import Example


def warnings(*rows):
    """The warnings about `rows`: tuples of task, split, prompt and completion."""
    overlap = TrainTestOverlap()
    for row, (task, split, prompt, completion) in enumerate(rows, start=1):
        overlap.observe(
            Example(
                task=task,
                split=split,
                prompt=prompt,
                completion=completion,
                file="rows.jsonl",
                row_number=row,
                fields={},
            )
        )
    findings = list(overlap.findings())
    assert all(finding.severity == "warning" for finding in findings)
    return [str(finding.problem) for finding in findings]


def test_other_prompts_splits_and_tasks_do_not_overlap():
    assert warnings(("t", "train", "a", "x"), ("t", "test", "b", "x")) == []
    assert warnings(("t", "train", "a", "x"), ("t", "validation", "a", "x")) == []
    assert warnings(("t", "train", "a", "x"), ("u", "test", "a", "x")) == []


def test_the_first_row_and_the_count_of_each_task():
    (warning,) = warnings(("t", "test", "a", "x"), ("t", "test", " a\n", "x"), ("t", "train", "a", "x"))
    assert warning == (
        "rows.jsonl:1: task t: train/test overlap: the prompt of this test row is also in the training split, so the "
        "score would measure memorization (2 such rows)"
    )


def test_a_different_completion_in_training():
    (warning,) = warnings(("t", "train", "a", "x"), ("t", "test", "a", "y"))
    assert warning.endswith("; 1 of them have a different completion there, so one of the two is wrong")
    (warning,) = warnings(("t", "train", "a", "x"), ("t", "train", "a", "y"), ("t", "test", "a", "y"))
    assert "different completion" not in warning
