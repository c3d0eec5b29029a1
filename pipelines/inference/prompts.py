"""Prompts of a finished run: rows of its tasks, conversations and plain text become the tokens of its evaluation."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pipelines.config.job import Job
from pipelines.config.messages import did_you_mean
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.messages import parse_messages
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.row_formats import fill_row
from pipelines.errors import DataError
from pipelines.storage.records import prompts_for_reasoning


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt.

    Attributes:
        ids: the tokens that the model is prompted with.
        max_new_tokens: the limit of its completion in the run: that of its task, or of prompts without a task, with
            the limit of the thought where one is asked for.
        context_length: the most tokens of prompt and completion.
    """

    ids: list[int]
    max_new_tokens: int
    context_length: int

    @property
    def room(self) -> int:
        """The tokens that the context leaves for a completion; negative for a prompt that is too long."""
        return self.context_length - len(self.ids)


class PromptBuilder:
    """Builds the prompts of one run, with its chat template, system prompts, variables, reasoning and token limits.

    Base and tuned model have the same prompts. `manifest` is that of the run, which says whether prompts ask for
    reasoning. Its methods may be called from every thread.
    """

    def __init__(
        self, job: Job, prompt_format: PromptFormat, manifest: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.job, self.prompt_format, self.manifest = job, prompt_format, manifest
        self._lock = threading.Lock()

    def from_row(self, task: str, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row in the template of a task, as `predict` completes it.

        Raises DataError, without a location, for a row that the task cannot use, and ConfigError if the chat template
        refuses it.
        """
        filled = fill_prompt(self.job, self.check_task(task), row)
        example = with_limit(Example(**filled, task=task, file="", row_number=1, fields=row), self.job, self.manifest)
        return self._encode(example.conversation, example.max_new_tokens or 0)

    def from_messages(
        self,
        messages: Any,
        task: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adds_system: bool = True,
    ) -> Prompt:
        """The prompt of a conversation whose last turn is the user's or a tool's.

        messages: turns in OpenAI's or ShareGPT's form.
        adds_system: whether messages without a system turn get the one that the run gives to `task`, or to prompts
            without a task.

        Raises DataError, without a location, for messages that are not valid, and ConfigError if the chat template
        refuses them.
        """
        if task is not None:
            self.check_task(task)
        try:
            turns = list(parse_messages("messages", messages).messages)
        except DataError as error:
            raise DataError(_without_rows(str(error))) from None
        if turns[-1]["role"] not in ("user", "tool"):
            raise DataError(f"messages end with the {turns[-1]['role']}'s turn; end them with the user's")
        system = self.job.system_prompt(task)
        if adds_system and turns[0]["role"] != "system" and system:
            turns.insert(0, {"role": "system", "content": system})
        asked = prompts_for_reasoning(self.manifest, task)
        conversation = Conversation(
            turns, tools=tools, template_kwargs=self.job.chat_template_kwargs(task), with_reasoning=asked
        )
        return self._encode(conversation, self.job.completion_limit(task, with_reasoning=asked))

    def from_text(self, text: str) -> Prompt:
        """A text that the model continues, without the chat template; with the BOS that the tokenizer adds."""
        _check_characters(text)
        with self._lock:
            ids = self.prompt_format.encode_text(text)
        return self.from_ids(ids)

    def from_ids(self, ids: Sequence[int]) -> Prompt:
        """Tokens that the model continues. Raises DataError for none, or one that the vocabulary does not have."""
        if not ids:
            raise DataError("the prompt has no tokens; write some text")
        size = len(self.prompt_format.tokenizer)
        if unknown := next((token for token in ids if not 0 <= token < size), 0):
            raise DataError(f"the prompt has the token {unknown}, but the vocabulary has tokens 0 to {size - 1}")
        limit = self.job.completion_limit(None, with_reasoning=False)
        return Prompt(list(ids), limit, self.prompt_format.context_length)

    def check_task(self, name: str) -> str:
        """The name. Raises DataError, with the names that there are, unless the run has a task of this name."""
        tasks = self.job.pipeline.tasks
        if name not in tasks:
            similar = did_you_mean(name, tasks)
            raise DataError(
                f"unknown task {name!r:.60}; "
                + (f"did you mean {similar}?" if similar else f"it has {', '.join(tasks)}")
            )
        return name

    def _encode(self, conversation: Conversation, max_new_tokens: int) -> Prompt:
        _check_characters("".join(str(value) for message in conversation.messages for value in message.values()))
        with self._lock:
            encoded = self.prompt_format.encode(conversation)
        return Prompt(encoded.prompt_ids, max_new_tokens, self.prompt_format.context_length)


def _check_characters(text: str) -> None:
    """Raises DataError for half a character (a surrogate of UTF-16), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt has {ascii(text[error.start])[1:-1]}, which is half a character") from None


def _without_rows(message: str) -> str:
    """An error of messages in a row, for messages that a client has sent."""
    message = message.replace("column messages", "messages", 1).replace(
        "alfine trains on text only", "models read text only"
    )
    return re.sub(r"(; |, or )drop the row$", "", message)


def fill_prompt(job: Job, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the system turn, the conversation and the variables of the template of a row, as keywords of an
    Example without a completion. Raises DataError, without a location."""
    (filled,) = fill_row(job.pipeline.tasks[task], row, job.system_prompt(task), needs_answer=False)
    kwargs = job.chat_template_kwargs(task)
    turns = None if filled.turns is None else replace(filled.turns, template_kwargs=kwargs)
    return {"prompt": filled.prompt, "system": filled.system, "turns": turns, "template_kwargs": kwargs}


def with_limit(example: Example, job: Job, manifest: Mapping[str, Any]) -> Example:
    """The example, which asks for reasoning if the training rows of its task had some, with the limit of its
    completion."""
    task = example.task or None
    asked = prompts_for_reasoning(manifest, task)
    limit = job.completion_limit(task, with_reasoning=asked, max_new_tokens=example.max_new_tokens)
    turns = None if example.turns is None else replace(example.turns, with_reasoning=asked)
    reasoning = "" if asked and turns is None else None
    return replace(example, reasoning=reasoning, turns=turns, max_new_tokens=limit)
