"""Few-shot prompts: the prompts of a task's test rows with training rows as examples before them.

The examples of a task are the same for all of its rows, so that their tokens are a shared prefix. With a chat template
they are earlier turns of the conversation; without one, texts before the prompt. The system turn is that of the test
row. Raise FEW_SHOT_FORMAT when prompts with examples are written in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.console.plain_text import count as number_of
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation, Message
from pipelines.data.examples import Example
from pipelines.data.prompt_format import EncodedExample, PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.storage.records import CompletionRecord, FewShotTask

FEW_SHOT_FORMAT = 1
"""Version of how the prompts are written; part of the digest of the stage."""
MIN_SHARE_WITH_ALL = 0.9
"""The share of a task's rows that must hold all examples; otherwise the task has fewer of them."""
SEPARATORS = ("\n\n", "\n\n\n", "\n\n---\n\n", "\n\n#####\n\n")
"""Texts between examples without a chat template: the first that is in none of their answers."""


@dataclass(frozen=True)
class FewShotPrompts:
    """The prompts of one task with examples.

    Attributes:
        summary: how many examples there are, which rows they are, and notes for the user. With k = 0 there are none,
            and no rows.
        rows: the test rows with the tokens of their few-shot prompts; `example` is the row without examples.
        shots: the examples. `counts` says how many of them each row has.
        separator: the text at which a completion ends; empty with a chat template, which has an end of turn.
    """

    summary: FewShotTask
    rows: list[TokenizedExample]
    shots: Sequence[Example] = ()
    counts: Sequence[int] = ()
    separator: str = ""

    def shown(self, index: int, prompt_format: PromptFormat) -> TokenizedExample:
        """A row whose example is the whole conversation of its prompt, to be displayed turn by turn."""
        row = self.rows[index]
        conversation = few_shot_conversation(row.example, self.shots[: self.counts[index]], prompt_format)
        return replace(row, example=replace(row.example, turns=conversation))


def few_shot_prompts(
    task: str,
    wanted: int,
    rows: Sequence[TokenizedExample],
    candidates: Sequence[TokenizedExample],
    prompt_format: PromptFormat,
    limit: int | None = None,
) -> FewShotPrompts:
    """The prompts of the test rows of a task, with up to `wanted` examples.

    rows: the test rows, each with its token limit.
    candidates: training rows of the task in the order in which they become examples.
    limit: write only the prompts of the first so many rows. All rows decide how many examples fit.
    """
    notes: list[str] = []
    shots = [candidate.example for candidate in candidates[:wanted]]
    if len(shots) < wanted:
        notes.append(
            f"{number_of(len(shots), 'example')} in the prompt instead of {wanted}: the task has no more training rows."
        )
    if reason := _reason_for_none(shots, rows[0].example, prompt_format):
        return _without_examples(task, wanted, f"No comparison with examples in the prompt: {reason}.")
    shots, note = _shots_that_fit(shots, rows, prompt_format)
    if note:
        notes.append(note)
    if not shots:
        return _without_examples(task, wanted, *notes)
    try:
        rows = rows[:limit]
        encoded = [_encode_fitting(row, shots, prompt_format) for row in rows]
    except ChatTemplateError as error:
        return _without_examples(task, wanted, f"No comparison with examples in the prompt: {error}.")
    fewer = sum(count < len(shots) for _, count in encoded)
    if fewer:
        notes.append(
            f"{fewer:,} of {len(rows):,} test rows have fewer than {len(shots)} examples in their prompt: the model's "
            f"context of {prompt_format.context_length:,} tokens holds no more."
        )
    summary = FewShotTask(
        task=task,
        k=len(shots),
        wanted=wanted,
        examples=[shot.source_location for shot in shots],
        num_tokens=max(
            len(prompt.prompt_ids) - len(row.prompt_ids) for row, (prompt, _) in zip(rows, encoded, strict=True)
        ),
        rows_with_fewer=fewer,
        notes=notes,
    )
    prompts = [
        TokenizedExample(prompt.input_ids, prompt.supervised_spans, row.example)
        for row, (prompt, _) in zip(rows, encoded, strict=True)
    ]
    separator = "" if prompt_format.uses_chat_template else _separator(shots)
    return FewShotPrompts(summary, prompts, shots, [count for _, count in encoded], separator)


def few_shot_conversation(example: Example, shots: Sequence[Example], prompt_format: PromptFormat) -> Conversation:
    """The conversation of a test row after those of the examples. Raises ChatTemplateError."""
    conversation = example.conversation
    messages = list(conversation.messages)
    num_system = int(messages[0]["role"] == "system")
    if not prompt_format.uses_chat_template:
        separator = _separator(shots)
        before = "".join(f"{_plain_text(shot, prompt_format)}{separator}" for shot in shots)
        user = messages[num_system]
        messages[num_system] = {**user, "content": f"{before}{user['content']}"}
        return replace(conversation, messages=messages)
    earlier = [message for shot in shots for message in _turns(shot)]
    return replace(
        conversation,
        messages=[*messages[:num_system], *earlier, *messages[num_system:]],
        supervised_turns=tuple(turn + len(earlier) for turn in conversation.supervised_turns),
    )


def cut_at_separator(record: CompletionRecord, separator: str) -> CompletionRecord:
    """The record of a completion without what follows its answer: a model without an end of turn goes on with the next
    example."""
    text = record.completion
    start = len(text) - len(text.lstrip())
    end = text.find(separator, start) if separator else -1
    if end < 0:
        return record
    return record.model_copy(update={"completion": text[:end], "finish_reason": "stop"})


def _without_examples(task: str, wanted: int, *notes: str) -> FewShotPrompts:
    return FewShotPrompts(FewShotTask(task=task, k=0, wanted=wanted, notes=list(notes)), [])


def _turns(shot: Example) -> list[Message]:
    """The turns of an example through its last supervised one, without the system turn."""
    conversation = shot.conversation
    end = conversation.supervised_turns[-1] + 1
    return [message for message in conversation.messages[:end] if message["role"] != "system"]


def _answers(shots: Sequence[Example]) -> list[str]:
    return [str(turn["content"]) for shot in shots for turn in _turns(shot) if turn["role"] == "assistant"]


def _plain_text(shot: Example, prompt_format: PromptFormat) -> str:
    """Prompt and answer of an example as the text that a model without a chat template is trained on."""
    conversation = shot.conversation
    turns = _turns(shot)
    return prompt_format.render(replace(conversation, messages=turns, supervised_turns=(len(turns) - 1,))).text


def _separator(shots: Sequence[Example]) -> str:
    answers = _answers(shots)
    return next((text for text in SEPARATORS if not any(text in answer for answer in answers)), SEPARATORS[-1])


def _reason_for_none(shots: Sequence[Example], example: Example, prompt_format: PromptFormat) -> str | None:
    """Why a task can have no examples in its prompts; None if it can."""
    if not shots:
        return "the task has no training row that could be one"
    conversations = [one.conversation for one in (*shots, example)]
    if any(conversation.tools or _has_tool_turns(conversation.messages) for conversation in conversations):
        return "its conversations have tools"
    try:
        text = prompt_format.render_prompt(few_shot_conversation(example, shots, prompt_format))
    except ChatTemplateError as error:
        return str(error)
    if any(answer.strip() not in text for answer in _answers(shots)):
        return "the chat template leaves out the answers of earlier turns"
    return None


def _has_tool_turns(messages: Sequence[dict[str, Any]]) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def _shots_that_fit(
    shots: list[Example], rows: Sequence[TokenizedExample], prompt_format: PromptFormat
) -> tuple[list[Example], str]:
    """As many of the examples as nearly all rows can hold, and a note if they are fewer."""
    shortest = min(rows, key=lambda row: len(row.prompt_ids))
    for count in range(len(shots), 0, -1):
        encoded = _encode(shortest, shots[:count], prompt_format)
        added = len(encoded.prompt_ids) - len(shortest.prompt_ids)
        fitting = sum(_needed(row, len(row.prompt_ids) + added) <= prompt_format.context_length for row in rows)
        if fitting >= MIN_SHARE_WITH_ALL * len(rows):
            break
    else:
        count = 0
    if count == len(shots):
        return shots, ""
    context = f"the model's context is {prompt_format.context_length:,} tokens"
    if not count:
        return [], f"No comparison with examples in the prompt: not even one fits; {context}."
    return shots[:count], f"{count} of {len(shots)} examples in the prompt: more do not fit; {context}."


def _needed(row: TokenizedExample, prompt_tokens: int) -> int:
    """The tokens that a prompt of this length needs with its completion or its reference."""
    return prompt_tokens + max(row.example.max_new_tokens or 1, len(row.completion_ids))


def _encode_fitting(
    row: TokenizedExample, shots: Sequence[Example], prompt_format: PromptFormat
) -> tuple[EncodedExample, int]:
    """The prompt of a row with as many of the examples as fit, and their number."""
    for count in range(len(shots), 0, -1):
        encoded = _encode(row, shots[:count], prompt_format)
        if _needed(row, len(encoded.prompt_ids)) <= prompt_format.context_length:
            return encoded, count
    return row, 0


def _encode(row: TokenizedExample, shots: Sequence[Example], prompt_format: PromptFormat) -> EncodedExample:
    return prompt_format.encode(few_shot_conversation(row.example, shots, prompt_format))
