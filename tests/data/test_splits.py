"""Random splits: of rows, by label, of clusters; and which rows are drawn from which files."""

import json
import random
from collections import Counter

import pytest

from pipelines.config.pipeline import PipelineSettings
from pipelines.data.splits import read_split_rows
from pipelines.data.stratified_split import random_splits


def test_random_splits():
    splits = random_splits(100, 0.1, 0.2)
    assert Counter(splits) == {"train": 70, "test": 20, "validation": 10}
    assert splits == random_splits(100, 0.1, 0.2)
    assert Counter(random_splits(3, 0.1, 0.1)) == {"train": 1, "test": 1, "validation": 1}


def test_every_label_has_its_proportion():
    labels = ["a"] * 500 + ["b"] * 300 + ["c"] * 190 + ["d"] * 10
    random.Random(0).shuffle(labels)
    splits = random_splits(1000, 0.1, 0.2, strata=labels)
    assert splits == random_splits(1000, 0.1, 0.2, strata=labels)
    assert Counter(splits) == {"train": 700, "test": 200, "validation": 100}
    counts = Counter(zip(labels, splits, strict=True))
    assert [counts[label, "test"] for label in "abcd"] == [100, 60, 38, 2]
    assert [counts[label, "validation"] for label in "abcd"] == [50, 30, 19, 1]


@pytest.mark.parametrize("seed", range(40))
def test_proportions_are_exact_within_one_row(seed):
    rng = random.Random(seed)
    labels = [str(rng.randrange(rng.randint(1, 12))) for _ in range(rng.randint(60, 400))]
    validation, test = rng.choice([0, 0.05, 0.1, 0.3]), rng.choice([0, 0.1, 0.25])
    splits = random_splits(len(labels), validation, test, strata=labels)
    counts, sizes = Counter(zip(labels, splits, strict=True)), Counter(labels)
    for label, size in sizes.items():
        assert counts[label, "train"] >= 1
        for split, fraction in (("validation", validation), ("test", test)):
            assert abs(counts[label, split] - size * fraction) < 2, (label, split, size)


def test_texts_are_not_labels():
    texts = [str(index) for index in range(100)]
    assert random_splits(100, 0.1, 0.1, strata=texts) == random_splits(100, 0.1, 0.1)


@pytest.mark.parametrize("seed", range(40))
def test_a_cluster_is_in_one_split(seed):
    rng = random.Random(seed)
    clusters = [rng.randrange(rng.randint(2, 60)) for _ in range(rng.randint(20, 300))]
    splits = random_splits(len(clusters), 0.1, 0.2, clusters=clusters)
    pairs = set(zip(clusters, splits, strict=True))
    assert len(pairs) == len(set(clusters))
    assert "train" in splits
    assert "test" in splits


def settings(tmp_path, data, rows, **task):
    for name, content in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    task = {"prompt": "{q}", "completion": "{a}", "metric": "exact_match", **task}
    pipeline = PipelineSettings.model_validate({"tasks": {"t": {"data": data, **task}}})
    return pipeline.tasks["t"], pipeline


def rows(count, label="x", **columns):
    return [{"q": f"{label}{index}", "a": "ab"[index % 2], **columns} for index in range(count)]


def counts(split_rows):
    return Counter((row.file.rsplit("/", 1)[-1], row.split) for row in split_rows)


def test_splits_without_files_are_drawn_from_the_training_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, pipeline = settings(tmp_path, {"train": "a.jsonl"}, {"a.jsonl": rows(100)})
    assert counts(read_split_rows(task, pipeline)) == {
        ("a.jsonl", "train"): 80,
        ("a.jsonl", "test"): 10,
        ("a.jsonl", "validation"): 10,
    }
    task, pipeline = settings(
        tmp_path, {"train": "a.jsonl", "test": "b.jsonl"}, {"a.jsonl": rows(100), "b.jsonl": rows(7)}
    )
    assert counts(read_split_rows(task, pipeline)) == {
        ("a.jsonl", "train"): 90,
        ("a.jsonl", "validation"): 10,
        ("b.jsonl", "test"): 7,
    }


def test_several_files_are_split_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, pipeline = settings(tmp_path, ["a.jsonl", "b.jsonl"], {"a.jsonl": rows(70), "b.jsonl": rows(30)})
    split_rows = list(read_split_rows(task, pipeline))
    assert Counter(row.split for row in split_rows) == {"train": 80, "test": 10, "validation": 10}
    assert Counter(row.fields["a"] for row in split_rows if row.split == "test") == {"a": 5, "b": 5}


def test_a_column_split_of_any_file_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, pipeline = settings(tmp_path, ["a.jsonl", "b.jsonl"], {"a.jsonl": rows(2), "b.jsonl": rows(1, split="test")})
    assert [(row.split, bool(row.error)) for row in read_split_rows(task, pipeline)] == [
        (None, True),
        (None, True),
        ("test", False),
    ]


def test_clusters_are_not_torn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = [{**row, "doc": index // 5} for index, row in enumerate(rows(100))]
    task, pipeline = settings(tmp_path, "a.jsonl", {"a.jsonl": content}, cluster_by="doc")
    split_of = {}
    for row in read_split_rows(task, pipeline):
        assert split_of.setdefault(row.fields["doc"], row.split) == row.split
    assert Counter(split_of.values()) == {"train": 16, "test": 2, "validation": 2}
