"""Data sets of the Hub, read from a stand-in for its API on this machine."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub_stand_in import COMMIT, NEWER, HubStandIn

SCRIPT = """
import json, sys
from pipelines.data.readers import read_rows
from pipelines.data.sources import open_source
from pipelines.errors import AlfineError

for text in json.loads(sys.argv[1]):
    try:
        source = open_source(text)
        files = [(file.name, file.split, len(read_rows(file.path))) for file in source.files]
        print(json.dumps({"files": files, "notes": source.notes}))
    except AlfineError as error:
        print(json.dumps({"error": [str(problem) for problem in error.problems]}))
"""
CARD = b"""---
configs:
- config_name: easy
  data_files:
  - {split: train, path: easy/train.jsonl}
  - {split: validation, path: easy/dev.jsonl}
- config_name: hard
  data_files: hard.jsonl
---
"""


def rows(count):
    return b"".join(json.dumps({"prompt": f"p {n}", "completion": "c"}).encode() + b"\n" for n in range(count))


def parquet(tmp_path, count):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"prompt": [f"p {n}" for n in range(count)], "completion": ["c"] * count}), path)
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path):
    # The same bytes in both splits: the Hub's cache keeps them once.
    plain = {COMMIT: {"train.jsonl": rows(4), "test.jsonl": rows(4)}, NEWER: {"train.jsonl": rows(9)}}
    shards = {f"data/train-0000{n}-of-00002.parquet": parquet(tmp_path, 3) for n in range(2)}
    card = {"README.md": CARD, "easy/train.jsonl": rows(5), "easy/dev.jsonl": rows(2), "hard.jsonl": rows(7)}
    repositories = {
        "datasets/o/plain": plain,
        "datasets/o/shards": {COMMIT: shards},
        "datasets/o/card": {COMMIT: card},
        "datasets/o/gated": {COMMIT: {"train.jsonl": rows(1)}},
    }
    with HubStandIn(repositories, denied={"datasets/o/gated"}) as hub:
        yield hub


@pytest.fixture
def read(hub, tmp_path):
    """read(texts…, offline=False) → for each text its files or its error, in a process that sees only the stand-in."""

    def read(*texts, offline=False):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "ALFINE_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", SCRIPT, json.dumps(texts)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        return [json.loads(line) for line in result.stdout.splitlines()]

    return read


def test_files_splits_configs_and_revisions(read):
    newest, pinned, split, file, shards, easy, hard = read(
        "hub:o/plain",
        f"hub:o/plain@{COMMIT}",
        f"hub:o/plain@{COMMIT}:test",
        f"hub:o/plain@{COMMIT}/train.jsonl",
        "hub:o/shards",
        "hub:o/card:easy",
        "hub:o/card:hard:train",
    )
    # A single split says nothing about train and test: its rows are split by the job.
    assert newest["files"] == [["hub:o/plain/train.jsonl", None, 9]]
    assert newest["notes"] == [f"hub:o/plain: 1 file at commit {NEWER[:12]}"]
    assert pinned["files"] == [["hub:o/plain/train.jsonl", "train", 4], ["hub:o/plain/test.jsonl", "test", 4]]
    assert split["files"] == [["hub:o/plain/test.jsonl", None, 4]]
    assert file["files"] == [["hub:o/plain/train.jsonl", None, 4]]
    assert [count for _, _, count in shards["files"]] == [3, 3], shards
    assert easy["files"] == [
        ["hub:o/card/easy/train.jsonl", "train", 5],
        ["hub:o/card/easy/dev.jsonl", "validation", 2],
    ]
    assert hard["files"] == [["hub:o/card/hard.jsonl", None, 7]]


def test_what_cannot_be_read_is_one_line(read):
    outcomes = read(
        "hub:o/none",
        "hub:o/gated",
        "hub:o/plain@0123456789abcdef",
        "hub:o/card",
        "hub:o/card:easy:test",
        "hub:o/card:medium:train",
        f"hub:o/plain@{COMMIT}/nothing.jsonl",
    )
    messages = [outcome["error"] for outcome in outcomes]
    assert all(len(problems) == 1 and "\n" not in problems[0] for problems in messages)
    expected = [
        "doesn't exist",
        "gated",
        "Revision",
        "has several configs; name one, as in hub:o/card:easy (easy, hard)",
        "has no split 'test'; it has train, validation",
        "has no config 'medium'; it has easy, hard",
        "has no file 'nothing.jsonl'",
    ]
    for (message,), text in zip(messages, expected, strict=True):
        assert text in message


def test_what_was_read_once_is_read_offline(read, hub):
    online = read("hub:o/plain", "hub:o/card:easy")
    asked = len(hub.requests)
    assert read("hub:o/plain", "hub:o/card:easy", f"hub:o/plain@{NEWER}", offline=True)[:2] == online
    assert len(hub.requests) == asked
    (missing,) = read("hub:o/shards", offline=True)
    assert "is not in the cache" in missing["error"][0]


def test_a_data_set_that_the_hub_refuses_now_is_not_taken_from_the_cache(read, hub):
    assert "files" in read("hub:o/plain")[0]
    hub.denied.add("datasets/o/plain")
    (outcome,) = read("hub:o/plain")
    assert len(outcome["error"]) == 1 and "cannot be accessed" in outcome["error"][0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_hub_is_one_line_or_a_retry(read, hub, status):
    hub.failures = [status] * 500
    (outcome,) = read(f"hub:o/plain@{COMMIT}/train.jsonl")
    assert len(outcome["error"]) == 1 and "is not in the cache and cannot be read from the Hub" in outcome["error"][0]
