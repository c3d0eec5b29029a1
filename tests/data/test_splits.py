"""Random splits: of rows, by label, of clusters; and which rows are drawn from which files."""

import json
import random
from collections import Counter

import pytest

from pipelines.config.pipeline import PipelineSettings
from pipelines.data.splits import draws_splits, read_split_rows
from pipelines.data.stratified_split import random_splits, rank_examples, sample_rows


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


def test_test_rows_are_drawn_by_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = [{"q": f"{index}", "a": "a" if index % 10 else "b"} for index in range(5000)]
    task, pipeline = settings(tmp_path, "a.jsonl", {"a.jsonl": content}, test_rows=100)
    split_rows = list(read_split_rows(task, pipeline))
    drawn = [row for row in split_rows if row.split == "test" and row.drawn]
    assert Counter(row.fields["a"] for row in drawn) == {"a": 90, "b": 10}
    assert Counter((row.split, row.drawn) for row in split_rows) == {
        ("train", True): 4000,
        ("validation", True): 500,
        ("test", True): 100,
        ("test", False): 400,
    }
    assert drawn == [row for row in read_split_rows(task, pipeline) if row.split == "test" and row.drawn]


def test_another_seed_draws_other_rows_of_the_same_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, pipeline = settings(tmp_path, "a.jsonl", {"a.jsonl": rows(500)}, test_rows=20, validation_rows=20)
    other = pipeline.model_copy(update={"report": pipeline.report.model_copy(update={"seed": 1})})
    first, second = list(read_split_rows(task, pipeline)), list(read_split_rows(task, other))
    assert [row.split for row in first] == [row.split for row in second]
    assert [row.drawn for row in first] != [row.drawn for row in second]
    job_seed = pipeline.model_copy(update={"seed": 7})
    assert first == list(read_split_rows(task, job_seed))


@pytest.mark.parametrize("data", ["named.jsonl", {"train": "a.jsonl", "validation": "v.jsonl", "test": "t.jsonl"}])
def test_rows_of_named_splits_are_drawn_as_well(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    parts = {"train": rows(40), "validation": rows(30), "test": rows(50)}
    files = {f"{name[0]}.jsonl": part for name, part in parts.items()} | {"a.jsonl": parts["train"]}
    named = [{**row, "split": name} for name, part in parts.items() for row in part]
    task, pipeline = settings(tmp_path, data, {**files, "named.jsonl": named}, test_rows=10, validation_rows="all")
    split_rows = list(read_split_rows(task, pipeline))
    assert Counter((row.split, row.drawn) for row in split_rows) == {
        ("train", True): 40,
        ("validation", True): 30,
        ("test", True): 10,
        ("test", False): 40,
    }


@pytest.mark.parametrize("seed", range(30))
def test_clusters_are_drawn_whole(seed):
    rng = random.Random(seed)
    clusters = [rng.randrange(rng.randint(2, 60)) for _ in range(rng.randint(50, 400))]
    held_out = sorted(rng.sample(range(len(clusters)), len(clusters) // 2))
    size = rng.randint(10, 40)
    drawn = sample_rows(held_out, size, seed, clusters=clusters)
    assert drawn <= set(held_out) and drawn
    sizes = Counter(clusters[row] for row in held_out)
    assert len(drawn) <= max(size, min(sizes.values()))
    chosen = {clusters[row] for row in drawn}
    assert len(drawn) == sum(sizes[cluster] for cluster in chosen)
    assert all(sizes[cluster] > size - len(drawn) for cluster in sizes if cluster not in chosen)


@pytest.mark.parametrize("seed", range(30))
def test_every_label_has_its_share_of_a_sample(seed):
    rng = random.Random(seed)
    labels = [str(int(rng.expovariate(0.5))) for _ in range(rng.randint(100, 1000))]
    held_out = sorted(rng.sample(range(len(labels)), len(labels) // 2))
    size = rng.randint(5, len(held_out))
    drawn = sample_rows(held_out, size, seed, strata=labels)
    assert len(drawn) == size and drawn <= set(held_out)
    counts, sizes = (Counter(labels[row] for row in rows) for rows in (drawn, held_out))
    assert all(abs(counts[label] - sizes[label] * size / len(held_out)) < 1 for label in sizes)


def test_no_row_is_likelier_to_be_drawn_than_another():
    counts = Counter(row for seed in range(2000) for row in sample_rows(range(40), 10, seed))
    assert min(counts.values()) > 400 and max(counts.values()) < 600  # 500 ± 5 standard deviations


def test_labels_take_turns_as_examples():
    labels = ["rare" if index % 50 == 7 else "ab"[index % 2] for index in range(400)]
    train = [index for index in range(400) if index % 5]
    ranks = rank_examples(train, 9, 0, labels)
    ranked = sorted(ranks, key=ranks.__getitem__)
    assert [labels[row] for row in ranked] == [labels[ranked[0]], labels[ranked[1]], "rare"] * 3
    assert {labels[row] for row in ranked[:2]} == {"a", "b"} and set(ranked) <= set(train)
    assert ranks == rank_examples(train, 9, 0, labels) != rank_examples(train, 9, 1, labels)
    assert len(rank_examples([3, 5], 9, 0)) == 2 and rank_examples([], 9, 0) == {}


def test_a_changed_metric_splits_rows_otherwise_only_if_splits_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"a.jsonl": rows(40), "named.jsonl": rows(40, split="train")}
    for data, expected in (("a.jsonl", True), ("named.jsonl", False), ({"train": "a.jsonl"}, True)):
        assert draws_splits(*settings(tmp_path, data, files)) is expected
    assert not draws_splits(*settings(tmp_path, dict.fromkeys(("train", "validation", "test"), "a.jsonl"), files))
