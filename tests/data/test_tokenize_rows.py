"""Tokenized examples, and their files on disk."""

from dataclasses import replace

import pytest

from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import open_split, read_test_examples, tokenize_examples, write_splits
from tests.data.stub_tokenizer import CharacterTokenizer
from tests.data.task_jobs import task_job

PROMPTS = PromptFormat(CharacterTokenizer())


def job_of(tmp_path, **task):
    splits = ["train", "train", "validation", "test"]
    rows = [{"q": f"q{index}", "a": "yn"[index % 2], "split": split, "n": index} for index, split in enumerate(splits)]
    return task_job(tmp_path, rows, **task)


def test_prompt_completion_and_end_token(tmp_path):
    rows = list(tokenize_examples(load_examples(job_of(tmp_path).pipeline), PROMPTS))
    assert [row.example.row_number for row in rows] == [1, 2, 3, 4]
    assert rows[0].prompt_ids == [ord("q"), ord("0")] and rows[0].completion_ids == [ord("y"), 0]
    assert rows[0].input_ids == rows[0].prompt_ids + rows[0].completion_ids
    assert rows[0].supervised_spans == [(2, 4)]


def test_without_a_completion_there_is_only_a_prompt(tmp_path):
    example = replace(next(load_examples(job_of(tmp_path).pipeline)), completion=None)
    (row,) = tokenize_examples([example], PROMPTS)
    assert row.input_ids == row.prompt_ids == [ord("q"), ord("0")]
    assert row.completion_ids == [] and row.supervised_spans == []


def test_splits_on_disk(tmp_path):
    job = job_of(tmp_path, system="Be brief.", max_new_tokens=7)
    rows = list(tokenize_examples(load_examples(job.pipeline), PROMPTS))
    write_splits(rows, tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "few_shot.arrow",
        "test.arrow",
        "train.arrow",
        "validation.arrow",
    ]
    train = open_split(tmp_path / "data", "train")
    assert train.column_names == ["task", "file", "row", "turn", "input_ids", "supervised_spans"]
    assert train["input_ids"].to_pylist() == [row.input_ids for row in rows[:2]]
    (example,) = read_test_examples(tmp_path / "data", job)
    assert example.input_ids == rows[3].input_ids and example.supervised_spans == rows[3].supervised_spans
    assert example.example.max_new_tokens == 7 and example.example.system == "Be brief."
    assert example.example.fields == {"q": "q3", "a": "n", "n": 3}
    assert example.example.source_location == rows[3].example.source_location


def test_an_error_leaves_no_split_behind(tmp_path):
    def failing_rows():
        yield from tokenize_examples(load_examples(job_of(tmp_path).pipeline), PROMPTS)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_splits(failing_rows(), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
