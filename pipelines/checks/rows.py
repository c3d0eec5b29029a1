"""Checks of single rows: each is a condition on one tokenized example."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.checks.findings import Finding
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.errors import Problem


@dataclass
class RowCheck:
    """A condition that makes a row invalid. It is reported once per task: at the first such row, with their number."""

    message: str
    is_invalid: Callable[[TokenizedExample], object]
    first_rows: dict[str, TokenizedExample] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def observe(self, row: TokenizedExample) -> None:
        if self.is_invalid(row):
            self.first_rows.setdefault(row.example.task, row)
            self.counts[row.example.task] += 1

    def findings(self) -> Iterator[Finding]:
        """One error per task with such rows."""
        for task, row in self.first_rows.items():
            count = f" ({self.counts[task]:,} such rows)" if self.counts[task] > 1 else ""
            yield Finding(
                "error", Problem(f"task {task}: {self.message}{count}", row.example.file, row.example.row_number)
            )


def row_checks(prompt_format: PromptFormat, max_length: int) -> list[RowCheck]:
    """The checks of every row. `max_length`: the most tokens that a row may have, prompt and completion together."""
    control_token = re.compile("|".join(map(re.escape, prompt_format.control_tokens)) or r"(?!)")
    bos = prompt_format.tokenizer.bos_token_id
    checks = [
        RowCheck(
            "the text contains a control token of this model (such as an end of turn), which would be tokenized "
            "as one; remove it from the row",
            lambda row: any(control_token.search(text) for text in _texts(row)),
        ),
        RowCheck(
            "the completion tokenizes to zero tokens, so nothing would be trained",
            lambda row: len(row.completion_ids) <= len(prompt_format.end_ids),
        ),
        RowCheck(
            "the end-of-turn token is not supervised, so the model would never stop",
            lambda row: not row.supervised_spans or row.input_ids[-1] not in prompt_format.stop_ids,
        ),
        RowCheck(
            f"is longer than the limit of {max_length} tokens; completions are never truncated: shorten or drop such "
            f"rows (pipeline.too_long: drop or truncate_prompt), or raise preprocessing.global_max_sequence_length if "
            f"the model's context allows it",
            lambda row: len(row.input_ids) > max_length,
        ),
    ]
    if bos is not None and bos not in prompt_format.end_ids:
        message = f"the prompt starts with {prompt_format.tokenizer.bos_token} twice; remove it from the template"
        checks.append(RowCheck(message, lambda row: row.input_ids[:2] == [bos, bos]))
    return checks


def _texts(row: TokenizedExample) -> Iterator[str]:
    """The texts that a row puts into the chat template: contents, thoughts, names and arguments of calls, tools."""
    conversation = row.example.conversation
    for message in conversation.messages:
        for key, value in message.items():
            if key != "role":
                yield from _strings(value)
    yield from _strings(conversation.tools)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)
