"""Rows that are longer than the limit: refused, left out, or with a shortened prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example, load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.data.too_long import TooLongRows
from pipelines.errors import DataError
from tests.data.stub_tokenizer import CharacterTokenizer
from tests.data.task_jobs import task_job
from tests.tiny_tokenizers import make_tokenizer

PROMPTS = PromptFormat(CharacterTokenizer())


def apply(
    tmp_path: Path, rows: list[dict[str, Any]], max_length: int = 20, **task: Any
) -> tuple[list[TokenizedExample], TooLongRows]:
    job = task_job(tmp_path, rows, **task)
    too_long = TooLongRows(job, PROMPTS, max_length)
    return list(too_long.apply(tokenize_examples(load_examples(job.pipeline), PROMPTS))), too_long


def make_rows(long: str = "one two three four five", splits: str = "train") -> list[dict[str, Any]]:
    """Two short rows and, in each of `splits`, one whose prompt is `long`."""
    rows = [{"q": "short", "a": "no", "split": split} for split in ("train", "validation", "test")]
    return rows + [{"q": long, "a": "yes", "split": split} for split in splits.split()]


def test_by_default_rows_are_unchanged(tmp_path: Path) -> None:
    rows, too_long = apply(tmp_path, make_rows())
    assert len(rows) == 4 and len(rows[3].input_ids) > 20 and not too_long.warnings


def test_rows_are_left_out_of_every_split_and_counted(tmp_path: Path) -> None:
    rows, too_long = apply(tmp_path, make_rows(splits="train train validation test"), too_long="drop")
    assert [row.example.row_number for row in rows] == [1, 2, 3]
    assert too_long.per_split(too_long.dropped, "t") == {"train": 2, "validation": 1, "test": 1}
    assert too_long.warnings == [
        "task t: 4 rows were longer than the limit of 20 tokens and left out (2 train, 1 validation, 1 test)"
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_which_no_row_remains_is_refused(tmp_path: Path, split: str) -> None:
    rows = [row for row in make_rows(splits=split) if row["split"] != split or row["a"] == "yes"]
    with pytest.raises(DataError, match=f"rows.jsonl:3: task t: too_long: drop leaves no {split} rows: all 1"):
        apply(tmp_path, rows, too_long="drop")


def test_a_prompt_is_cut_after_a_word(tmp_path: Path) -> None:
    rows, too_long = apply(tmp_path, make_rows(splits="train test"), too_long="truncate_prompt")
    assert [row.example.prompt for row in rows] == ["short"] * 3 + ["one two three"] * 2
    assert all(row.example.completion == "yes" for row in rows[3:])
    assert rows[4].prompt_ids == [ord(character) for character in "one two three"]
    assert rows[4].completion_ids == [*map(ord, "yes"), 0]
    assert too_long.notes("t") == [
        "2 rows were longer than the limit of 20 tokens; their prompts were shortened (1 train, 1 test)."
    ]


@pytest.mark.parametrize(
    ("long", "shortened"),
    [
        ("x" * 30, "x" * 16),  # no space
        ("a " + "x" * 30, "a " + "x" * 14),  # the only space would leave too little
        ("é" * 30, "é" * 16),
        ("e\u0301" * 30, "e\u0301" * 8),
        ("x" + "e\u0301" * 30, "x" + "e\u0301" * 7),  # not between a letter and its accent
        ("x" * 14 + "👩\u200d👩\u200d👧", "x" * 14),
        ("one two three    four", "one two three"),
        ("exactly sixteen! more", "exactly sixteen!"),
    ],
)
def test_where_a_prompt_is_cut(tmp_path: Path, long: str, shortened: str) -> None:
    rows, _ = apply(tmp_path, make_rows(long), too_long="truncate_prompt")
    assert rows[3].example.prompt == shortened


def test_the_end_of_the_template_stays(tmp_path: Path) -> None:
    rows, _ = apply(tmp_path, make_rows(), 24, too_long="truncate_prompt", prompt="Text: {q}\n=")
    assert rows[3].example.prompt == "Text: one two\n="


@pytest.mark.parametrize("template", [None, "jinja"])
def test_the_longest_column_is_cut_and_the_question_stays(tmp_path: Path, template: str | None) -> None:
    prompt = "{doc}\nQ: {q}" if template is None else "{% if doc %}{{ doc }}\n{% endif %}Q: {{ q }}"
    rows = [{**row, "doc": "ab" if row["q"] == "short" else "x " * 40, "q": "why?"} for row in make_rows()]
    options = {} if template is None else {"template": template, "completion": "{{ a }}"}
    shortened, too_long = apply(tmp_path, rows, max_length=30, prompt=prompt, too_long="truncate_prompt", **options)
    assert too_long.truncated["t", "train"] == 1
    assert shortened[3].example.prompt == "x " * 7 + "x\nQ: why?"


def test_the_end_of_a_jinja_template_stays_where_a_filter_changes_the_column(tmp_path: Path) -> None:
    rows = [{**row, "q": f"  {row['q']}"} for row in make_rows("one two three four five")]
    options = {"template": "jinja", "completion": "{{ a }}", "too_long": "truncate_prompt"}
    shortened, _ = apply(tmp_path, rows, prompt="{{ q | trim }} Why?\n", **options)
    assert shortened[3].example.prompt == "one two Why?"


def test_a_shortened_test_row_leaves_room_for_an_answer(tmp_path: Path) -> None:
    job = task_job(tmp_path, make_rows("word " * 30, "train test"), too_long="truncate_prompt", max_new_tokens=25)
    prompts = PromptFormat(CharacterTokenizer())
    prompts.context_length = 60
    too_long = TooLongRows(job, prompts, 60)
    rows = {
        row.example.split: row
        for row in list(too_long.apply(tokenize_examples(load_examples(job.pipeline), prompts)))[3:]
    }
    answer = len(prompts.encode_text("yes"))
    assert 55 <= len(rows["train"].input_ids) <= 60
    assert len(rows["test"].input_ids) - answer <= 60 - 25


def test_a_row_without_room_for_a_prompt_is_refused(tmp_path: Path) -> None:
    rows = make_rows()
    rows[3]["a"] = "y" * 30
    with pytest.raises(DataError, match="rows.jsonl:4: task t: is longer than the limit of 20 tokens even without"):
        apply(tmp_path, rows, too_long="truncate_prompt")


def test_the_last_user_turn_of_a_conversation_is_cut(tmp_path: Path) -> None:
    job = task_job(tmp_path, make_rows(), too_long="truncate_prompt")
    prompts = PromptFormat(make_tokenizer("pad_is_eos"))
    long = "one two three four " * 20
    turns = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", long), ("assistant", "end")]
    messages = [{"role": role, "content": content} for role, content in turns]
    first: Example = next(load_examples(job.pipeline))
    example = replace(first, prompt=f"first\na\n{long}", turns=Conversation(messages, (2, 4)))
    encoded = prompts.encode(example.conversation)
    too_long = TooLongRows(job, prompts, len(encoded.input_ids) - 30)
    (row,) = too_long.apply([TokenizedExample(encoded.input_ids, encoded.supervised_spans, example)])
    assert row.example.turns is not None
    contents = [message["content"] for message in row.example.turns.messages]
    assert contents[:3] == ["s", "first", "a"] and contents[4] == "end"
    assert long.startswith(contents[3]) and len(long) > len(contents[3]) > 50
    assert row.example.prompt == f"first\na\n{contents[3]}" and messages[3]["content"] == long
    assert row.input_ids == prompts.encode(row.example.conversation).input_ids
    assert too_long.max_length - 10 <= len(row.input_ids) <= too_long.max_length
    assert row.completion_ids == encoded.completion_ids and len(row.supervised_spans) == 2


def test_dropped_rows_do_not_count_as_rows_with_reasoning(tmp_path: Path) -> None:
    job = task_job(tmp_path, make_rows(splits="train test"), too_long="drop")
    tokenized = list(tokenize_examples(load_examples(job.pipeline), PROMPTS))
    with_reasoning = [replace(row, example=replace(row.example, reasoning="so")) for row in tokenized]
    too_long = TooLongRows(job, PROMPTS, 20)
    assert len(list(too_long.apply(with_reasoning))) == 3 and too_long.dropped_reasoning == {"t": 1}
