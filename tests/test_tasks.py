"""Rows in, examples out."""

import json
from collections import Counter

import pytest

from pipelines.config import load_job
from pipelines.errors import DataError
from pipelines.row_files import read_rows
from pipelines.tasks import epoch_order, fill, load_examples, random_splits, task_shares


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2: is not JSON"),
        ("a.jsonl", "[1, 2]\n", ":1: is no object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: is not UTF-8"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "[" * 100_000, ":1: is not JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ":3: has 3 cells, the header has 2"),
        ("a.csv", "a,b\n1\n", ":2: has 1 cells"),
        ("a.csv", "a,a\n1,2\n", ":1: two columns have the name 'a'"),
        ("a.csv", 'a,b\n"x"y,2\n', ":2: is not CSV"),
        ("a.csv", "a,b\n", "has no rows"),
        ("a.parquet", "no parquet", "is not a Parquet file"),
        ("a.txt", "x", "files end in .jsonl, .csv or .parquet"),
    ],
)
def test_bad_files_name_the_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message.replace("[", r"\[").replace("(", r"\(")):
        read_rows(write(tmp_path, name, content))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "b.jsonl").mkdir()
        read_rows(tmp_path / "b.jsonl")


def test_csv_keeps_text_as_it_is(tmp_path):
    rows = read_rows(write(tmp_path, "a.csv", 'id,text\n001,"NA, or\nnull"\n'))
    assert rows == [{"id": "001", "text": "NA, or\nnull"}]


def test_formats_agree(tmp_path):
    import pandas as pd

    rows = [{"a": "x", "b": "ä\u2028b"}, {"a": "", "b": "2"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    write(tmp_path, "a.jsonl", "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert read_rows(tmp_path / "a.parquet") == read_rows(tmp_path / "a.jsonl") == read_rows(tmp_path / "a.csv") == rows


def test_a_row_of_100_kb(tmp_path):
    path = write(tmp_path, "a.csv", "a,b\n" + "x" * 200_000 + ",2\n")
    assert len(read_rows(path)[0]["a"]) == 200_000


def test_fill():
    assert fill("{{{a}}} {b} {c}", {"a": "x", "b": 2.5, "c": ["é"]}) == '{x} 2.5 ["é"]'
    with pytest.raises(DataError, match="names the column {z}, the row has: a"):
        fill("{z}", {"a": 1, "split": "train"})
    with pytest.raises(DataError, match="has no value|is NaN"):
        fill("{a}", {"a": float("nan")})
    # A column's text is never taken for a template.
    assert fill("{a}", {"a": "{b}"}) == "{b}"


def make_job(tmp_path, rows, **pipeline):
    data = write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(data), "prompt": "{q}", "completion": "{a}", "metric": "label"}
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
        ([{"q": "1", "a": "2", "split": "dev"}], ":1: split is 'dev'"),
        ([{"q": "1", "a": " "}] * 9, r"rows.jsonl:1: task t: the completion is empty; .* \(9 such rows\)"),
        ([{"q": "1", "a": "2"}] * 8 + [{"q": "1", "a": "2", "split": "test"}], ":1: has no split, though row 9 has one"),
        ([{"q": "1"}] * 9, "rows.jsonl:1: task t: the template names the column {a}"),
        ([{"q": "1", "a": "2", "split": "train"}], "no row is left for the test split"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        list(load_examples(make_job(tmp_path, rows).pipeline))


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
