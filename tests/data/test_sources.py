"""Sources: what a task's `data` names, and data sets on the Hub from a cache that a test has filled."""

import json
import os
from pathlib import Path

import pytest

from pipelines.config.data_files import DataFiles
from pipelines.data import hub_files
from pipelines.data.sources import describe_data, open_source, pin_data, source_digests, source_sha256
from pipelines.errors import DataError
from pipelines.storage.files import file_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"q": str(name), "a": "x"}) + "\n")


def names(data):
    return [(file.name, file.split) for file in open_source(data).files]


def test_a_file_a_list_and_a_pattern():
    write("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl", "data/d.csv")
    assert names("data/a.jsonl") == [("data/a.jsonl", None)]
    assert names(["data/b.jsonl", "data/d.csv"]) == [("data/b.jsonl", None), ("data/d.csv", None)]
    assert names("data/*.jsonl") == [("data/a.jsonl", None), ("data/b.jsonl", None)]
    assert [name for name, _ in names("data/**/*.jsonl")] == ["data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl"]
    assert open_source("data/*.jsonl").notes == ["data/*.jsonl names 2 files"]
    assert names(str(Path("data/[ab].jsonl").absolute()))[0][0].endswith("data/a.jsonl")


def test_a_file_whose_name_is_a_pattern():
    write("a[1].jsonl")
    assert names("a[1].jsonl") == [("a[1].jsonl", None)]


def test_the_home_folder():
    write("home/data/a.jsonl")
    assert open_source("~/data/a.jsonl").files[0].path == Path("home/data/a.jsonl").absolute()


def test_folders():
    write("f/b.jsonl", "f/a.csv", "f/README.md", "f/.hidden.jsonl", "f/_tmp/c.jsonl")
    assert names("f") == [("f/a.csv", None), ("f/b.jsonl", None)]
    write("g/train-00000-of-00001.jsonl", "g/data/test-0.jsonl")
    assert sorted(names("g")) == [("g/data/test-0.jsonl", "test"), ("g/train-00000-of-00001.jsonl", "train")]
    assert "the splits come from the names" in open_source("g").notes[0]
    write("h/train.jsonl", "h/other.jsonl")
    assert {split for _, split in names("h")} == {None}


def test_saved_datasets():
    import datasets

    dataset = datasets.Dataset.from_list([{"q": "a", "a": "b"}])
    datasets.DatasetDict({"train": dataset, "val": dataset, "test": dataset}).save_to_disk("saved")
    assert names("saved") == [("saved/train", "train"), ("saved/val", "validation"), ("saved/test", "test")]
    assert names("saved/train") == [("saved/train", None)]
    datasets.DatasetDict({"train": dataset, "extra": dataset}).save_to_disk("odd")
    with pytest.raises(DataError, match=r"it is unclear which split 'extra' is; name one per split"):
        open_source("odd")


def test_files_of_each_split():
    write("a.jsonl", "b.jsonl", "c.jsonl")
    data = DataFiles.model_validate({"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"})
    assert names(data) == [("a.jsonl", "train"), ("b.jsonl", "train"), ("c.jsonl", "test")]
    assert describe_data(data) == "train: a.jsonl, b.jsonl, test: c.jsonl"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("c.jsonl", "no such file: 'c.jsonl'; paths are relative to the working directory"),
        ("dir/a.jsom", "no such file: 'dir/a.jsom'; did you mean dir/a.jsonl?"),
        ("*.parquet", "*.parquet: no file matches this pattern"),
        ("empty", "empty: the folder has no data file"),
        (["dir/a.jsonl", "dir/*.jsonl"], "is named twice, by 'dir/a.jsonl' and 'dir/*.jsonl'"),
        (["splits", "dir/a.jsonl"], "belongs to no split, although other files"),
        ("hub:", "write hub:OWNER/NAME"),
        ("hub:a/b:c:d:e", "write hub:OWNER/NAME"),
    ],
)
def test_what_cannot_be_found(data, message):
    write("dir/a.jsonl", "splits/train.jsonl", "splits/test.jsonl")
    Path("empty").mkdir()
    with pytest.raises(DataError) as caught:
        open_source(data)
    assert message in str(caught.value)


def test_the_digest_covers_every_file():
    write("d/a.jsonl", "d/b.jsonl")
    first = source_sha256(open_source("d/*.jsonl"), file_sha256)
    write("d/c.jsonl")
    source = open_source("d/*.jsonl")
    assert source_sha256(source, file_sha256) != first
    assert [entry[0] for entry in source_digests(source, file_sha256)] == ["d/a.jsonl", "d/b.jsonl", "d/c.jsonl"]
    assert source_sha256(open_source("d/a.jsonl"), file_sha256) == file_sha256(Path("d/a.jsonl"))


def fill_hub_cache(monkeypatch, tmp_path, files):
    """Files in the layout of the Hub's cache: nothing is downloaded, huggingface_hub itself finds them."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "datasets--owner--name" / "snapshots" / COMMIT
    write(*(folder / file for paths in files.values() for file in paths))
    found = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *args, **kwargs: found(*args, **kwargs, cache_dir=str(tmp_path / "hub")),
    )


def resolve_to(monkeypatch, files, calls):
    def resolve(wanted, revision, text):
        calls.append(revision)
        return hub_files.ResolvedDataset(wanted.name, COMMIT, files)

    monkeypatch.setattr(hub_files, "_resolve_online", resolve)


def test_a_data_set_on_the_hub(monkeypatch, tmp_path):
    files = {"train": ["data/train-0.jsonl", "data/train-1.jsonl"], "test": ["data/test-0.jsonl"]}
    calls = []
    fill_hub_cache(monkeypatch, tmp_path, files)
    resolve_to(monkeypatch, files, calls)
    assert names("hub:owner/name") == [
        ("hub:owner/name/data/train-0.jsonl", "train"),
        ("hub:owner/name/data/train-1.jsonl", "train"),
        ("hub:owner/name/data/test-0.jsonl", "test"),
    ]
    assert open_source("hub:owner/name").notes == [f"hub:owner/name: 3 files at commit {COMMIT[:12]}"]
    pinned = pin_data(["hub:owner/name", "a.jsonl"], hub_files.pinned)
    assert pinned == [f"hub:owner/name@{COMMIT}", "a.jsonl"]
    count = len(calls)
    assert len(names(pinned[0])) == 3
    assert len(calls) == count, "a commit that is known needs no network"


def test_a_data_set_with_one_split_is_split_by_its_rows(monkeypatch, tmp_path):
    fill_hub_cache(monkeypatch, tmp_path, {"train": ["x.jsonl"]})
    resolve_to(monkeypatch, {"train": ["x.jsonl"]}, [])
    assert names("hub:owner/name:config") == [("hub:owner/name/x.jsonl", None)]
    assert names(DataFiles(train="hub:owner/name:train")) == [("hub:owner/name/x.jsonl", "train")]


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))

    def fail(*_):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(hub_files, "_resolve_online", fail)
    with pytest.raises(
        DataError, match=r"^hub:owner/name: the data set is not in the cache and .* \(no route to host\)"
    ):
        open_source("hub:owner/name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:o/n", hub_files.HubDataset("o/n", None)),
        ("hub:squad", hub_files.HubDataset("squad", None)),
        ("hub:o/n@v1:cfg:train", hub_files.HubDataset("o/n", "v1", ("cfg", "train"))),
        ("hub:o/n:train[:10]", None),
        ("hub:o/n@main/data/a.parquet", hub_files.HubDataset("o/n", "main", file="data/a.parquet")),
    ],
)
def test_forms_of_hub_names(text, expected):
    if expected is None:
        with pytest.raises(DataError):
            hub_files.HubDataset.parse(text + ":x")
        return
    assert hub_files.HubDataset.parse(text) == expected
    assert hub_files.HubDataset.parse(expected.at("abc")).revision == "abc"


def test_links_to_nothing_pipes_and_long_names(tmp_path):
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    os.mkfifo(tmp_path / "pipe.xlsx")
    for name, message in {
        "loop.jsonl": "is a link to a file that does not exist, or to itself",
        "pipe.xlsx": "is not a file (a pipe, socket or device)",
        "a" * 300 + ".jsonl": "cannot be read: File name too long",
    }.items():
        with pytest.raises(DataError) as error:
            open_source(str(tmp_path / name))
        assert message in str(error.value)
