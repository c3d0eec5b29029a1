"""Few-shot prompts: the prompts of a task's test rows with training rows as examples before them.

The examples of a task are the same for all of its rows, so that their tokens are a shared prefix. With a chat template
they are earlier turns of the conversation; without one, texts before the prompt. The system turn is that of the test
row. A training row with the prompt or in the cluster of a test row is no example: it would show the answer. Raise
FEW_SHOT_FORMAT when prompts with examples are written in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config.task import FewShotSettings
from pipelines.console.plain_text import count as number_of
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation, Message
from pipelines.data.examples import Example
from pipelines.data.prompt_format import EncodedExample, PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.storage.records import CompletionRecord, FewShotTask

FEW_SHOT_FORMAT = 3
"""Version of how the prompts are written and which rows are examples; part of the digest of the stage."""
MIN_SHARE_WITH_ALL = 0.9
"""The share of a task's rows that must hold all examples; otherwise the task has fewer of them."""
SEPARATORS = ("\n\n", "\n\n\n", "\n\n---\n\n", "\n\n#####\n\n")
"""Texts between examples without a chat template: the first that is in none of their answers."""


@dataclass(frozen=True)
class FewShotPrompts:
    """The prompts of one task with examples.

    Attributes:
        summary: how many examples there are, which rows they are, and notes for the user. With neither examples nor an
            instruction there are no rows.
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
        row, writer = self.rows[index], FewShotWriter(prompt_format, self.summary.instruction)
        conversation = writer.conversation(row.example, self.shots[: self.counts[index]])
        return replace(row, example=replace(row.example, turns=conversation))


def few_shot_prompts(
    task: str,
    settings: FewShotSettings,
    rows: Sequence[TokenizedExample],
    candidates: Sequence[TokenizedExample],
    prompt_format: PromptFormat,
    limit: int | None = None,
    cluster_by: str | None = None,
) -> FewShotPrompts:
    """The prompts of the test rows of a task, with up to `settings.max_k` examples, and an instruction if there is one.

    rows: the test rows, each with its token limit.
    candidates: training rows of the task in the order in which they become examples.
    limit: write only the prompts of the first so many rows. All rows decide how many examples fit.
    cluster_by: the column with the cluster of a row.
    """
    notes: list[str] = []
    wanted, instruction = settings.max_k, settings.instruction
    writer = FewShotWriter(prompt_format, instruction)
    usable = without_leaks(candidates, rows, cluster_by)
    shots = [row.example for row in usable[:wanted]]
    if len(shots) < wanted:
        others = "" if len(usable) == len(candidates) else " that differ from all test rows"
        notes.append(
            f"{number_of(len(shots), 'example')} in the prompt instead of {wanted}: the task has no more training "
            f"rows{others}."
        )
    reason = writer.reason_against(shots, rows[0].example) if wanted else None
    if reason is not None:
        notes, shots = [f"No comparison with examples in the prompt: {reason}."], []
    shots, note = writer.shots_that_fit(shots, rows)
    if note:
        notes.append(note)
    if not shots and not instruction:
        return FewShotPrompts(FewShotTask(task=task, k=0, wanted=wanted, notes=notes), [])
    try:
        rows = rows[:limit]
        encoded = [writer.encode_fitting(row, shots) for row in rows]
    except ChatTemplateError as error:
        notes = [f"No comparison with examples in the prompt: {error}."]
        return FewShotPrompts(FewShotTask(task=task, k=0, wanted=wanted, notes=notes), [])
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
        instruction=instruction,
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


def without_leaks(
    candidates: Sequence[TokenizedExample], rows: Sequence[TokenizedExample], cluster_by: str | None
) -> list[TokenizedExample]:
    """The candidates without those that have the prompt or the cluster of one of `rows`, and without copies."""

    def keys(example: Example) -> list[tuple[str, ...]]:
        prompt = ("prompt", *example.prompt.split())
        return [prompt] if cluster_by is None else [prompt, ("cluster", str(example.fields.get(cluster_by)))]

    tested = {key for row in rows for key in keys(row.example)}
    usable, prompts = [], set[tuple[str, ...]]()
    for candidate in candidates:
        prompt, *_ = candidate_keys = keys(candidate.example)
        if prompt not in prompts and tested.isdisjoint(candidate_keys):
            usable.append(candidate)
            prompts.add(prompt)
    return usable


@dataclass(frozen=True)
class FewShotWriter:
    """Writes prompts with examples and an instruction, which is added to the system turn."""

    prompt_format: PromptFormat
    instruction: str | None = None

    def conversation(self, example: Example, shots: Sequence[Example]) -> Conversation:
        """The conversation of a test row after those of the examples."""
        conversation = example.conversation
        messages = list(conversation.messages)
        system = [messages.pop(0)["content"]] if messages[0]["role"] == "system" else []
        if self.instruction is not None:
            system.append(self.instruction)
        before: list[Message] = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        if self.prompt_format.uses_chat_template:
            before += [message for shot in shots for message in _turns(shot)]
        elif shots:
            separator = _separator(shots)
            texts = "".join(f"{_plain_text(shot, self.prompt_format)}{separator}" for shot in shots)
            messages[0] = {**messages[0], "content": f"{texts}{messages[0]['content']}"}
        shift = len(before) + len(messages) - len(conversation.messages)
        turns = tuple(turn + shift for turn in conversation.supervised_turns)
        return replace(conversation, messages=[*before, *messages], supervised_turns=turns)

    def encode(self, row: TokenizedExample, shots: Sequence[Example]) -> EncodedExample:
        """The tokens of the prompt of a row and of its reference. Raises ChatTemplateError."""
        return self.prompt_format.encode(self.conversation(row.example, shots))

    def encode_fitting(self, row: TokenizedExample, shots: Sequence[Example]) -> tuple[EncodedExample, int]:
        """The prompt of a row with as many of the examples as fit, and their number. A row that does not even hold the
        instruction is prompted without it."""
        for count in range(len(shots), -1, -1):
            encoded = self.encode(row, shots[:count])
            if _needed(row, len(encoded.prompt_ids)) <= self.prompt_format.context_length:
                return encoded, count
        return row, 0

    def reason_against(self, shots: Sequence[Example], example: Example) -> str | None:
        """Why a task can have no examples in its prompts; None if it can."""
        if not shots:
            return "the task has no training row that could be one"
        conversations = [one.conversation for one in (*shots, example)]
        if any(conversation.tools or _has_tool_turns(conversation.messages) for conversation in conversations):
            return "its conversations have tools"
        try:
            text = self.prompt_format.render_prompt(self.conversation(example, shots))
        except ChatTemplateError as error:
            return str(error)
        if any(answer.strip() not in text for answer in _answers(shots)):
            return "the chat template leaves out the answers of earlier turns"
        return None

    def shots_that_fit(self, shots: list[Example], rows: Sequence[TokenizedExample]) -> tuple[list[Example], str]:
        """As many of the examples as nearly all rows can hold, and a note if they are fewer."""
        context_length = self.prompt_format.context_length
        shortest = min(rows, key=lambda row: len(row.prompt_ids))
        for count in range(len(shots), 0, -1):
            added = len(self.encode(shortest, shots[:count]).prompt_ids) - len(shortest.prompt_ids)
            fitting = sum(_needed(row, len(row.prompt_ids) + added) <= context_length for row in rows)
            if fitting >= MIN_SHARE_WITH_ALL * len(rows):
                break
        else:
            count = 0
        if count == len(shots):
            return shots, ""
        context = f"the model's context is {context_length:,} tokens"
        if not count:
            return [], f"No comparison with examples in the prompt: not even one fits; {context}."
        return shots[:count], f"{count} of {len(shots)} examples in the prompt: more do not fit; {context}."


def cut_at_separator(record: CompletionRecord, separator: str) -> CompletionRecord:
    """The record of a completion without what follows its answer: a model without an end of turn goes on with the next
    example."""
    text = record.completion
    start = len(text) - len(text.lstrip())
    end = text.find(separator, start) if separator else -1
    if end < 0:
        return record
    return record.model_copy(update={"completion": text[:end], "finish_reason": "stop"})


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


def _has_tool_turns(messages: Sequence[dict[str, Any]]) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def _needed(row: TokenizedExample, prompt_tokens: int) -> int:
    """The tokens that a prompt of this length needs with its completion or its reference."""
    return prompt_tokens + max(row.example.max_new_tokens or 1, len(row.completion_ids))
