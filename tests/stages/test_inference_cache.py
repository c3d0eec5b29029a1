"""The cache of the base model's results: stored once, and a cache that cannot be written is a warning."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipelines.console.reporter import ConsoleReporter
from pipelines.stages.inference_cache import store_completions, store_retention
from pipelines.storage.files import read_jsonl, write_text
from pipelines.storage.records import RetentionRecord

RECORD = RetentionRecord(eval="text", kind="text_nll", item=1, score=2.5)


@pytest.fixture
def context(tmp_path):
    """A StageContext with a run's name and a reporter; `output` has what was reported."""
    output = io.StringIO()
    reporter = ConsoleReporter(Console(file=output, width=500))
    return SimpleNamespace(run=SimpleNamespace(name="one"), reporter=reporter, output=output)


def test_completions_are_copied_once(tmp_path, context):
    entry = tmp_path / "cache" / "completions" / "key"
    for content in ("first", "second"):
        write_text(tmp_path / "base" / "completions.jsonl", content)
        store_completions(context, tmp_path / "base", entry)
    assert (entry / "completions.jsonl").read_text() == "first"
    assert [path.name for path in entry.parent.iterdir()] == ["key"] and context.output.getvalue() == ""


def test_retention_scores_are_stored(tmp_path, context):
    store_retention(context, [RECORD], tmp_path / "cache" / "key.jsonl")
    (record,) = read_jsonl(tmp_path / "cache" / "key.jsonl")
    assert (record["eval"], record["score"]) == ("text", 2.5)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, context):
    write_text(tmp_path / "base" / "completions.jsonl", "x")
    (tmp_path / "cache").write_text("a file in the way")
    store_completions(context, tmp_path / "base", tmp_path / "cache" / "completions" / "key")
    store_retention(context, [RECORD], tmp_path / "cache" / "key.jsonl")
    warnings = context.output.getvalue().splitlines()
    assert len(warnings) == 2 and all("Other runs cannot reuse the results" in line for line in warnings)
