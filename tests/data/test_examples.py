"""Rows in, examples out."""

import json
from collections import Counter

import pytest

from pipelines.config.job import load_job
from pipelines.data.examples import check_files, epoch_order, load_examples, random_splits, task_shares
from pipelines.errors import DataError


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def make_job(tmp_path, rows, **pipeline):
    data = write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(data), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}
    config = {"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": task}, **pipeline}}
    return load_job(write(tmp_path, "job.yaml", json.dumps(config)))


def test_examples_carry_their_place_and_split(tmp_path):
    rows = [{"q": f"q{n}", "a": "x", "split": split} for n, split in enumerate(["train", "test", "validation"])]
    examples = list(load_examples(make_job(tmp_path, rows, system="be").pipeline))
    assert [(e.split, e.row, e.prompt, e.completion, e.system) for e in examples][1] == ("test", 2, "q1", "x", "be")
    assert examples[1].fields == {"q": "q1", "a": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"q": "1", "a": "2"}], "no row is left for the train split"),
        ([{"q": "1", "a": "2", "split": "dev"}], ":1: task t: split is 'dev'; write validation"),
        ([{"q": "1", "a": "2", "split": " Train"}] * 3, r":1: task t: split is ' Train'; write train \(3 such rows\)"),
        ([{"q": "1", "a": "2", "split": "Held-out"}], "split is 'Held-out'; write test"),
        ([{"q": "1", "a": "2", "split": 0.7}], "split is 0.7; write one of train, validation, test"),
        ([{"q": "1", "a": " "}] * 9, r"rows.jsonl:1: task t: the completion is empty; .* \(9 such rows\)"),
        (
            [{"q": "1", "a": "2"}] * 8 + [{"q": "1", "a": "2", "split": "test"}],
            ":1: task t: has no split, though row 9 has one",
        ),
        ([{"q": "1"}] * 9, "rows.jsonl:1: task t: the template names the column {a}"),
        (
            [{"q": "1", "a": "2", "split": "train"}],
            "no row is left for the test split .*; write test in the column `split` of some",
        ),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        list(load_examples(make_job(tmp_path, rows).pipeline))


def test_a_split_column_without_values_is_none(tmp_path):
    rows = [{"q": f"q{n}", "a": "x", "split": None} for n in range(20)]
    splits = Counter(example.split for example in load_examples(make_job(tmp_path, rows).pipeline))
    assert splits == {"train": 16, "validation": 2, "test": 2}


def test_values_of_columns_that_no_template_uses_do_not_matter(tmp_path):
    odd = [None, float("nan"), float("inf"), [1, [2]], {"a": None}, "\0", -0.0, 10**30, True]
    rows = [{"q": f"q{n}", "a": "x", "other": odd[n % len(odd)]} for n in range(30)]
    assert len(list(load_examples(make_job(tmp_path, rows).pipeline))) == 30


def test_different_mistakes_are_named_once_each_and_not_without_end(tmp_path):
    rows = [{"q": f"q{n}", "a": "x", "split": f"part {n}"} for n in range(50)]
    with pytest.raises(DataError) as found:
        list(load_examples(make_job(tmp_path, rows).pipeline))
    assert len(found.value.problems) == 11 and "40 more rows have other mistakes" in str(found.value.problems[-1])


def task_job(tmp_path, rows, **task):
    """A job whose only task has these settings as well."""
    write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data": str(tmp_path / "rows.jsonl"),
        "prompt": "{q}",
        "completion": "{a}",
        "metric": "exact_match",
        **task,
    }
    config = {"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": settings}}}
    return load_job(write(tmp_path, "job.yaml", json.dumps(config)))


@pytest.mark.parametrize(
    ("more", "settings", "message"),
    [
        ({}, {"group": "document"}, "group names the column document, the row has: q, a"),
        ({"Document": "d"}, {"group": "document"}, "the row has: q, a, Document; did you mean Document"),
        (
            {"document": None},
            {"group": "document"},
            "group names the column document, which has no value here; every test row",
        ),
        ({"document": float("nan")}, {"group": "document"}, "which has no value here"),
        ({"document": ["d"]}, {"group": "document"}, "a value that is no text or number"),
        ({}, {"metric": "unit_tests"}, "metric unit_tests needs a column `tests` with one assert or more"),
        ({"test": "assert f() == 1"}, {"metric": "unit_tests"}, "the row has 'test': rename it"),
        ({"tests": []}, {"metric": "unit_tests"}, "this one holds a list of something"),
        ({"team": "x"}, {"system": "You work for {team}."}, r"system holds \{team\}, a column of the rows"),
        ({"team": "x"}, {"system": "You work for { team }."}, r"write \{team\} in prompt instead"),
    ],
)
def test_columns_that_a_score_or_the_system_turn_depends_on(tmp_path, more, settings, message):
    rows = [{"q": f"q{n}", "a": "x", "split": ["train", "test"][n % 2], **more} for n in range(8)]
    with pytest.raises(DataError, match=message):
        list(load_examples(task_job(tmp_path, rows, **settings).pipeline))


def test_a_group_is_asked_of_test_rows_only_and_braces_may_stand_in_system(tmp_path):
    rows = [
        {"q": f"q{n}", "a": "x", "split": ["train", "test"][n % 2]} | ({"doc": 1} if n % 2 else {}) for n in range(8)
    ]
    examples = list(
        load_examples(task_job(tmp_path, rows, group="doc", system='Answer as {"label": …} or {{q}}.').pipeline)
    )
    assert len(examples) == 8 and examples[0].system == 'Answer as {"label": …} or {{q}}.'


@pytest.mark.parametrize(
    ("prompt", "completion", "wrong"),
    [
        (
            "{q}\n{a}",
            "{a}",
            "prompt: it holds the answer, {a}, which the completion is made of; take {a} out of the prompt",
        ),
        ("{q} {a}", "{a} since {q}", "it holds the answer, {a} and {q}"),
        ("{a}", "<b>{a}</b>", "it holds the answer, {a}"),
        ("{q}", "{a} since {q}", None),
        ("{{a}} {q}", "{a}", None),
    ],
)
def test_the_answers_column_in_the_prompt(tmp_path, prompt, completion, wrong):
    job = task_job(tmp_path, [{"q": "the a is in the text", "a": "a"}], prompt=prompt, completion=completion)
    if wrong is None:
        return check_files(job)
    with pytest.raises(DataError) as found:
        check_files(job)
    assert wrong in str(found.value) and "job.yaml:1" in str(found.value)


def test_the_answers_column_in_the_prompt_of_a_guard(tmp_path):
    (tmp_path / "g.jsonl").write_text('{"q": "x", "a": "y"}\n')
    guard = {"kind": "task", "data": str(tmp_path / "g.jsonl"), "prompt": "{q} {a}", "completion": "{a}"}
    job = make_job(tmp_path, [{"q": "x", "a": "y"}], forgetting={"strategy": "none", "guards": {"g": guard}})
    with pytest.raises(DataError, match="guards.g.prompt: it holds the answer"):
        check_files(job)


def test_files_of_splits(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"q": "x", "a": "y", "split": "train"}\n')
    rows = [{"q": "1", "a": "2"}]
    train, test = str(tmp_path / "rows.jsonl"), str(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match="train and test are the same file"):
        check_files(task_job(tmp_path, rows, data={"train": train, "test": f"{tmp_path}/./rows.jsonl"}))
    with pytest.raises(DataError, match="its column `split` says train, but data names the file under test"):
        list(load_examples(task_job(tmp_path, rows, data={"train": train, "test": test}).pipeline))
    with pytest.raises(DataError, match="data names no test file; write test: FILE beside train"):
        list(load_examples(task_job(tmp_path, rows, data={"train": train}).pipeline))


def test_a_row_is_named_by_its_line(tmp_path):
    job = task_job(tmp_path, [])
    write(tmp_path, "rows.jsonl", '{"q": "1", "a": "2"}\n\n{"q": "1", "a": ""}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:3: task t: the completion is empty"):
        list(load_examples(job.pipeline))


def test_random_splits():
    splits = random_splits(100, 0.1, 0.2)
    assert Counter(splits) == {"train": 70, "test": 20, "validation": 10}
    assert splits == random_splits(100, 0.1, 0.2)
    assert Counter(random_splits(3, 0.1, 0.1)) == {"train": 1, "test": 1, "validation": 1}


@pytest.mark.parametrize(
    ("mix", "expected"), [("proportional", (0.9, 0.1)), ("equal", (0.5, 0.5)), ("temperature", (0.75, 0.25))]
)
def test_shares(mix, expected):
    shares = task_shares({"a": 900, "b": 100}, {"a": 1, "b": 1}, mix, 2.0)
    assert (shares["a"], shares["b"]) == pytest.approx(expected)
    assert task_shares({"a": 1, "b": 1}, {"a": 3, "b": 1}, mix, 2.0)["a"] == pytest.approx(0.75)


def test_proportional_epochs_hold_every_row_once():
    tasks = ["a"] * 30 + ["b"] * 7
    shares = task_shares({"a": 30, "b": 7}, {"a": 1, "b": 1}, "proportional", 2.0)
    first, second = (epoch_order(tasks, shares, 1, epoch, True) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(37))
    assert first != second
    assert epoch_order(tasks, shares, 1, 0, True) == first != epoch_order(tasks, shares, 2, 0, True)
    assert epoch_order(tasks, shares, 1, 0, False) == list(range(37))


def test_equal_epochs_repeat_the_small_task_evenly():
    tasks = ["a"] * 30 + ["b"] * 6
    order = epoch_order(tasks, task_shares({"a": 30, "b": 6}, {"a": 1, "b": 1}, "equal", 2.0), 1, 0, True)
    counts = Counter(order)
    assert len(order) == 36
    assert {counts[row] for row in range(30, 36)} == {3}
    assert {counts[row] for row in range(30) if counts[row]} == {1}
