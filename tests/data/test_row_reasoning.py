"""Thoughts of rows: which are trained, left out, kept as text or refused, and what the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.job import Job
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example, load_examples
from pipelines.data.reasoning import THINK_TAGS, ReasoningMarkers
from pipelines.data.reasoning_markers import find_markers
from pipelines.data.row_reasoning import PEEKED_ROWS, RowReasoning, settle
from pipelines.errors import ConfigError, DataError
from tests.data.task_jobs import task_job

MISTRAL = find_markers(None, ["[THINK]"])
MEDGEMMA = find_markers(None, ["<unused95>"])
INLINE = "<think>\nwhy\n</think>\n\nyes"


def job_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Job:
    filled = [
        {"split": "test" if index == 1 else "train", "q": f"{index}?", "a": "yes", **row}
        for index, row in enumerate(rows)
    ]
    return task_job(folder, filled, prompt="{q}", completion="{a}", **keys)


def read(
    job: Job, markers: ReasoningMarkers | None = THINK_TAGS
) -> tuple[list[tuple[str | None, str | None]], RowReasoning]:
    """Thought and completion of every example."""
    reasoning = RowReasoning(job, markers)
    return [(one.reasoning, one.completion) for one in reasoning.apply(load_examples(job.pipeline))], reasoning


def test_rows_without_thoughts_are_not_touched(tmp_path: Path) -> None:
    found, reasoning = read(job_of(tmp_path, [{}, {}]))
    assert found == [(None, "yes")] * 2
    assert (reasoning.notes, reasoning.warnings, reasoning.train_with_reasoning("t")) == ([], [], None)


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([{"reasoning": "why"}, {"reasoning": ""}, {"reasoning": None}, {}], {}),
        ([{"why": "why"}, {"why": ""}, {"why": None}, {"why": " "}], {"reasoning": "{why}"}),
        ([{"a": INLINE}, {}, {}, {}], {}),
        ([{"a": INLINE, "reasoning": "why"}, {}, {}, {}], {}),
    ],
)
def test_thoughts_of_rows_are_trained(tmp_path: Path, rows: list[dict[str, Any]], keys: dict[str, Any]) -> None:
    found, reasoning = read(job_of(tmp_path, rows, **keys))
    assert sorted(found, reverse=True) == [("why", "yes"), ("", "yes"), ("", "yes"), ("", "yes")]
    assert reasoning.train_with_reasoning("t") == 1
    assert bool(reasoning.notes) == ("reasoning" not in keys) and not reasoning.warnings


def test_thoughts_without_an_opening_marker_are_thoughts_if_many_rows_have_them(tmp_path: Path) -> None:
    unopened = {"a": "why\n</think>\nyes"}
    assert read(job_of(tmp_path, [unopened, {}]))[0] == [("why", "yes"), ("", "yes")]
    with pytest.raises(DataError, match="rows.jsonl:1: task t: has reasoning, but the first"):
        read(job_of(tmp_path, [unopened, {}, {}]))
    assert read(job_of(tmp_path, [unopened, {}, {}], reasoning=True))[0] == [("why", "yes"), ("", "yes"), ("", "yes")]


def test_the_note_names_the_markers_and_how_to_leave_thoughts_out(tmp_path: Path) -> None:
    found, reasoning = read(job_of(tmp_path, [{"a": INLINE}, {}]), MISTRAL)
    assert ("why", "yes") in found
    (note,) = reasoning.notes
    assert "[THINK] … [/THINK]" in note and "metrics see the answer only" in note and "reasoning: false" in note


def test_a_column_reasoning_that_a_template_names_is_no_thought(tmp_path: Path) -> None:
    rows = [{"reasoning": "why"}, {"reasoning": "so"}]
    job = task_job(
        tmp_path,
        [{"split": split, "q": "?", "a": "b", **row} for split, row in zip(("train", "test"), rows, strict=True)],
        prompt="{q} {reasoning}",
        completion="{a}",
    )
    assert read(job)[0] == [(None, "b")] * 2


def test_a_column_reasoning_without_text_is_no_thought(tmp_path: Path) -> None:
    assert read(job_of(tmp_path, [{"reasoning": True}, {"reasoning": ["x"]}]))[0] == [(None, "yes")] * 2


@pytest.mark.parametrize("markers", [THINK_TAGS, None])
def test_thoughts_can_be_left_out(tmp_path: Path, markers: ReasoningMarkers | None) -> None:
    found, reasoning = read(job_of(tmp_path, [{"a": INLINE}, {"reasoning": "why"}], reasoning=False), markers)
    assert found == [(None, "yes")] * 2 and not reasoning.notes and not reasoning.warnings


@pytest.mark.parametrize("markers", [None, MEDGEMMA])
def test_a_model_without_markers_keeps_the_text_and_ignores_the_column(
    tmp_path: Path, markers: ReasoningMarkers | None
) -> None:
    found, reasoning = read(job_of(tmp_path, [{"a": INLINE}, {"reasoning": "why"}]), markers)
    assert found == [(None, INLINE), (None, "yes")] and reasoning.train_with_reasoning("t") is None
    column, inline = reasoning.warnings
    assert "the column reasoning is ignored: this model has no markers" in column
    assert "trained and scored as a part of the completion" in inline and "reasoning: false" in inline


def test_a_key_that_the_model_cannot_follow_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":\d+: task t: this model has no markers .* write the thought into"):
        read(job_of(tmp_path, [{"why": "x"}, {"why": "y"}], reasoning="{why}"), None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "<think>so"}, "the completion begins a thought with <think> that has no </think>"),
        ({"a": "<think>so</think> "}, "the completion is only a thought"),
        ({"a": INLINE, "reasoning": "other"}, "two different thoughts"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl:3: task t: .*{message}"):
        read(job_of(tmp_path, [{"a": INLINE}, {}, row]))


def test_a_thought_after_many_rows_without_is_an_error() -> None:
    example = Example(prompt="?", completion=INLINE, file="f", row_number=PEEKED_ROWS + 1, fields={})
    with pytest.raises(DataError, match="first 1,000 rows of the task have none, .*; write reasoning: true"):
        settle(example, "none", THINK_TAGS)


def conversation(*contents: tuple[str, str], **keys: str) -> Example:
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in contents]
    messages[-1] |= keys
    turns = Conversation(messages, supervised_turns=(len(messages) - 1,))
    return Example(prompt="?", completion=messages[-1]["content"], file="f", row_number=1, fields={}, turns=turns)


def test_thoughts_of_conversations() -> None:
    example = conversation(
        ("user", "a"), ("assistant", INLINE), ("user", "b"), ("assistant", "no"), reasoning_content="so"
    )
    trained = settle(example, "train", THINK_TAGS)
    assert trained.turns is not None and trained.turns.with_reasoning
    assert [message.get("reasoning_content") for message in trained.turns.messages] == [None, "why", None, "so"]
    assert [message["content"] for message in trained.turns.messages] == ["a", "yes", "b", "no"]
    assert (trained.reasoning, trained.completion) == ("so", "no")
    left_out = settle(example, "remove", THINK_TAGS)
    assert left_out.turns is not None and not left_out.turns.with_reasoning and left_out.reasoning is None
    assert not any("reasoning_content" in message for message in left_out.turns.messages)
    assert [message["content"] for message in left_out.turns.messages] == ["a", "yes", "b", "no"]


def test_the_completion_of_a_conversation_is_the_answer() -> None:
    trained = settle(conversation(("user", "a"), ("assistant", INLINE)), "train", THINK_TAGS)
    assert (trained.reasoning, trained.completion) == ("why", "yes")


def test_a_column_is_the_thought_of_the_last_answer() -> None:
    example = conversation(("user", "a"), ("assistant", "yes"))
    trained = settle(Example(**{**vars(example), "reasoning": "why"}), "train", THINK_TAGS)
    assert trained.turns is not None and trained.turns.messages[-1]["reasoning_content"] == "why"


def test_a_turn_may_be_a_thought_and_a_tool_call() -> None:
    example = conversation(("user", "a"), ("assistant", "<think>why</think>"))
    assert example.turns is not None
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    example.turns.messages[-1]["tool_calls"] = [call]
    trained = settle(example, "train", THINK_TAGS)
    assert trained.turns is not None
    assert trained.turns.messages[-1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "why",
        "tool_calls": [call],
    }
