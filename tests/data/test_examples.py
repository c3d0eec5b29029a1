"""Examples of a job's tasks, and the rows that are rejected."""

import json
from collections import Counter

import pytest

from pipelines.data.examples import HeldOutRows, load_examples
from pipelines.errors import DataError
from tests.data.task_jobs import make_job, task_job, write


def test_examples_have_their_source_and_split(tmp_path):
    rows = [{"q": f"q{index}", "a": "x", "split": split} for index, split in enumerate(["train", "test", "validation"])]
    examples = list(load_examples(make_job(tmp_path, rows, system="be").pipeline))
    assert [(e.split, e.row_number, e.prompt, e.completion, e.system) for e in examples][1] == (
        "test",
        2,
        "q1",
        "x",
        "be",
    )
    assert examples[1].fields == {"q": "q1", "a": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"q": "1", "a": "2"}], "the test split is empty"),
        ([{"q": "1", "a": "2", "split": "dev"}], ":1: task t: split is 'dev'; write validation"),
        ([{"q": "1", "a": "2", "split": " Train"}] * 3, r":1: task t: split is ' Train'; write train \(3 such rows\)"),
        ([{"q": "1", "a": "2", "split": "Held-out"}], "split is 'Held-out'; write test"),
        (
            [{"q": "1", "a": "2", "split": f"text {index}"} for index in range(40)],
            r"\A[^\n]*:1: task t: its column `split` holds no split, as 'text 0'; write one of train, validation, test, "
            r"or rename the column if it is another thing \(40 such rows\)\Z",
        ),
        ([{"q": "1", "a": "2", "split": 0.7}], "holds no split, as 0.7; write one of train, validation, test"),
        ([{"q": "1", "a": " "}] * 9, r"rows.jsonl:1: task t: the completion is empty; .* \(9 such rows\)"),
        (
            [{"q": "1", "a": "2"}] * 8 + [{"q": "1", "a": "2", "split": "test"}],
            ":1: task t: has no split, though row 9 has one",
        ),
        ([{"q": "1"}] * 9, "rows.jsonl:1: task t: the template names the column {a}"),
        (
            [{"q": "1", "a": "2", "split": "train"}],
            "the test split is empty .*; write test in the column `split` of some",
        ),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        list(load_examples(make_job(tmp_path, rows).pipeline))


def test_an_empty_split_column_is_ignored(tmp_path):
    rows = [{"q": f"q{index}", "a": "x", "split": None} for index in range(20)]
    splits = Counter(example.split for example in load_examples(make_job(tmp_path, rows).pipeline))
    assert splits == {"train": 16, "validation": 2, "test": 2}


def test_unused_columns_may_hold_anything(tmp_path):
    odd = [None, float("nan"), float("inf"), [1, [2]], {"a": None}, "\0", -0.0, 10**30, True]
    rows = [{"q": f"q{index}", "a": "x", "other": odd[index % len(odd)]} for index in range(30)]
    assert len(list(load_examples(make_job(tmp_path, rows).pipeline))) == 30


def test_problems_are_grouped_and_limited(tmp_path):
    rows = [{"q": f"q{index}", f"x{index}": "x"} for index in range(50)]
    with pytest.raises(DataError) as caught:
        list(load_examples(make_job(tmp_path, rows).pipeline))
    assert len(caught.value.problems) == 11 and "40 more rows have other problems" in str(caught.value.problems[-1])


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({}, {"cluster_by": "document"}, "cluster_by names the column document, but the row has: q, a"),
        ({"Document": "d"}, {"cluster_by": "document"}, "the row has: q, a, Document; did you mean Document"),
        (
            {"document": None},
            {"cluster_by": "document"},
            "cluster_by names the column document, which has no value here; every test row",
        ),
        ({"document": float("nan")}, {"cluster_by": "document"}, "which has no value here"),
        ({"document": ["d"]}, {"cluster_by": "document"}, "a value that is no text or number"),
        ({}, {"metric": "unit_tests"}, "metric unit_tests needs a column `tests` with at least one assert"),
        ({"test": "assert f() == 1"}, {"metric": "unit_tests"}, "the row has 'test': rename it"),
        ({"tests": []}, {"metric": "unit_tests"}, "this one holds a list of something"),
    ],
)
def test_columns_of_the_score_and_the_system_turn(tmp_path, columns, settings, message):
    rows = [{"q": f"q{index}", "a": "x", "split": ["train", "test"][index % 2], **columns} for index in range(8)]
    with pytest.raises(DataError, match=message):
        list(load_examples(task_job(tmp_path, rows, **settings).pipeline))


def test_cluster_by_is_required_of_test_rows_only(tmp_path):
    rows = [
        {"q": f"q{index}", "a": "x", "split": ["train", "test"][index % 2]} | ({"doc": 1} if index % 2 else {})
        for index in range(8)
    ]
    examples = list(
        load_examples(task_job(tmp_path, rows, cluster_by="doc", system='Answer as {"label": …} or {{q}}.').pipeline)
    )
    assert len(examples) == 8 and examples[0].system == 'Answer as {"label": …} or {{q}}.'


def test_one_file_per_split(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"q": "x", "a": "y", "split": "train"}\n')
    rows = [{"q": "1", "a": "2"}]
    train, test = str(tmp_path / "rows.jsonl"), str(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match="its column `split` has train, but data names the file under test"):
        list(load_examples(task_job(tmp_path, rows, data={"train": train, "test": test}).pipeline))
    with pytest.raises(DataError, match="the test split is empty"):
        list(load_examples(task_job(tmp_path, rows, data={"train": train}).pipeline))


def test_problems_have_the_line_of_the_row(tmp_path):
    job = task_job(tmp_path, [])
    write(tmp_path, "rows.jsonl", '{"q": "1", "a": "2"}\n\n{"q": "1", "a": ""}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:3: task t: the completion is empty"):
        list(load_examples(job.pipeline))


def test_only_the_first_rows_of_each_split_and_candidates_become_examples(tmp_path):
    rows = [{"q": f"q{number}", "a": "yn"[number % 2]} for number in range(3000)]
    job = make_job(tmp_path, rows)
    everything, some = HeldOutRows(), HeldOutRows()
    whole = list(load_examples(job.pipeline, everything))
    first = list(load_examples(job.pipeline, some, first=10))
    assert everything.used == some.used and some.skipped == 3000 - len(first) and not everything.skipped
    ranked = [example for example in whole if example.rank is not None]
    assert len(ranked) == 64 and {example.split for example in ranked} == {"train"}
    for split in ("train", "validation", "test"):
        expected = [example for example in whole if example.split == split][:10]
        assert [example for example in first if example.split == split and (example in expected)] == expected
    assert [example for example in first if example.rank is not None] == ranked
    assert len(first) <= 94


def test_a_contradictory_row_is_reported_although_it_is_not_drawn(tmp_path):
    write(tmp_path, "train.jsonl", '{"q": "a", "a": "x"}\n{"q": "b", "a": "y"}\n' * 2)
    lines = ["".join(json.dumps({"q": f"{n}", "a": "xy"[n % 2], "split": "test"}) + "\n") for n in range(50)]
    lines[33] = lines[33].replace('"test"', '"train"')
    write(tmp_path, "test.jsonl", "".join(lines))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    job = task_job(tmp_path, [], data=data, test_rows=3)
    with pytest.raises(DataError, match=r"test\.jsonl:34: task t: its column `split` has train"):
        list(load_examples(job.pipeline))
