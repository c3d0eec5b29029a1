"""Checks of single tokenized rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.checks.rows import row_checks
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from tests.data.stub_tokenizer import CharacterTokenizer

PROMPTS = PromptFormat(CharacterTokenizer())


def tokenized(prompt: str = "ab", completion: str = "cd") -> TokenizedExample:
    example = Example(task="t", prompt=prompt, completion=completion, file="rows.jsonl", row_number=1, fields={})
    return next(tokenize_examples([example], PROMPTS))


def errors(*rows: TokenizedExample, max_length: int = 9) -> list[str]:
    checks = row_checks(PROMPTS, max_length)
    for row in rows:
        for check in checks:
            check.observe(row)
    return [str(finding.problem) for check in checks for finding in check.findings() if finding.severity == "error"]


def test_a_good_row() -> None:
    assert errors(tokenized()) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (tokenized("a<|eos|>"), "contains a control token of this model"),
        (tokenized(completion=""), "the completion tokenizes to zero tokens"),
        (replace(tokenized(), input_ids=[1, 2, 3, 4, 5]), "the end-of-turn token is not supervised"),
        (tokenized("x" * 9), "is longer than the limit of 9 tokens"),
    ],
)
def test_bad_rows(row: TokenizedExample, message: str) -> None:
    assert any(message in error for error in errors(row))


def test_rows_are_counted_per_task() -> None:
    assert errors(tokenized("x" * 9), tokenized(), tokenized("y" * 9))[0].endswith("allows it (2 such rows)")


@pytest.mark.parametrize(
    ("extra", "tools"),
    [
        ({"tool_calls": [{"function": {"name": "find", "arguments": {"q": ["x <|eos|>"]}}}]}, None),
        ({"name": "a<|eos|>"}, None),
        ({}, [{"type": "function", "function": {"name": "f", "description": "<|eos|>"}}]),
    ],
)
def test_control_tokens_are_found_in_calls_names_and_tools(extra: dict, tools: list | None) -> None:
    row = tokenized()
    conversation = Conversation.single_turn("ab", "cd")
    messages = [{**conversation.messages[0], **extra}, *conversation.messages[1:]]
    turns = replace(conversation, messages=tuple(messages), tools=tools)
    row = replace(row, example=replace(row.example, turns=turns))
    assert any("contains a control token" in error for error in errors(row))
