"""The reasoning of rows: which tasks train a thought before the completion, and where their rows have it.

A row has its thought in the template `reasoning` of its task, in its column `reasoning`, in the key
`reasoning_content` of a message, or in front of the answer: `<think>…</think>answer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from typing import Literal

from pipelines.config.job import Job
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation, Message
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors
from pipelines.data.reasoning import THINK_TAGS, ReasoningMarkers, split_inline_thought
from pipelines.errors import ConfigError, DataError

PEEKED_ROWS = 1000
"""Rows of a task that decide whether it trains reasoning, if the config does not say so."""
WRITE_FALSE = "write reasoning: false to leave them out"
MIN_UNOPENED_SHARE = 0.5
"""Share of completions with a closing marker only from which they are thoughts: fewer may just mention the marker."""

Mode = Literal["train", "remove", "keep", "none"]
"""What happens to thoughts: they are trained; left out; left in the text of the completion; or there are none."""


@dataclass
class RowReasoning:
    """Decides per task whether its rows are trained with reasoning, and brings the examples into that form.

    Args:
        job: the job whose tasks the rows belong to.
        markers: how the model marks its thoughts, None if it has no markers.
        prompt_format: renders a conversation with a thought, to see whether the model can be prompted for one; None
            leaves that out.

    Attributes:
        modes: what happens to the thoughts of each task whose rows were read.
        num_train_rows: the training rows with a thought of each task.
        notes: what was decided because of the rows, for the user.
        warnings: thoughts that the model cannot express.
    """

    job: Job
    markers: ReasoningMarkers | None
    prompt_format: PromptFormat | None = None
    modes: dict[str, Mode] = field(default_factory=dict)
    num_train_rows: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def apply(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yields the examples with their final `reasoning`, completion and turns.

        Raises ConfigError for a task whose reasoning this model cannot express, and DataError after the last example of
        a task, for rows that cannot be used.
        """
        for name, group in groupby(examples, key=lambda example: example.task):
            errors = RowErrors(f"task {name}: ")
            peeked = list(islice(group, PEEKED_ROWS))
            mode = self.modes[name] = self._decide(name, peeked)
            for example in chain(peeked, group):
                try:
                    settled = settle(example, mode, self.markers)
                except DataError as error:
                    errors.add(example.file, example.row_number, str(error))
                    continue
                self.num_train_rows[name] += example.split == "train" and bool(settled.reasoning)
                yield settled
            errors.raise_if_any()

    def train_with_reasoning(self, name: str) -> int | None:
        """The number of training rows of a task with a thought; None if the task trains no reasoning."""
        return self.num_train_rows[name] if self.modes.get(name) == "train" else None

    def _decide(self, name: str, examples: Collection[Example]) -> Mode:
        key = self.job.pipeline.tasks[name].reasoning
        in_column = any(example.reasoning for example in examples)
        inline = _has_inline_thoughts(examples, self.markers)
        if key is None and not in_column and not inline:
            return "none"
        if key is False:
            return "remove"
        markers = self.markers
        if markers is None or not markers.is_trainable:
            return self._without_markers(name, key is not None, in_column, inline)
        if key is None:
            where = "column reasoning" if in_column else "completions"
            self.notes.append(
                f"task {name}: the thoughts in the {where} are trained as {markers.open or 'text'} … {markers.close} "
                f"before the answer; metrics see the answer only; {WRITE_FALSE}"
            )
        self._check_prompt(name)
        return "train"

    def _check_prompt(self, name: str) -> None:
        """Raises ConfigError if the chat template cannot prompt for reasoning, as with `enable_thinking: false`."""
        if self.prompt_format is None:
            return
        kwargs = self.job.chat_template_kwargs(name)
        try:
            self.prompt_format.render(Conversation.single_turn("?", "!", None, "so", kwargs))
        except ChatTemplateError as error:
            own = self.job.pipeline.tasks[name].chat_template_kwargs
            key = ("pipeline", "tasks", name) if own or not kwargs else ("pipeline",)
            message = f"task {name}: its rows have reasoning, but {error}"
            raise ConfigError(self.job.problem(message, *key, "chat_template_kwargs")) from None

    def _without_markers(self, name: str, is_explicit: bool, in_column: bool, inline: bool) -> Mode:
        cause = "this model has no markers for reasoning, neither in its chat template nor in its vocabulary"
        if is_explicit:
            message = (
                f"task {name}: {cause}; remove `reasoning`, or write the thought into the completion, as in "
                'completion: "<think>{reasoning}</think>{answer}"'
            )
            raise ConfigError(self.job.problem(message, "pipeline", "tasks", name, "reasoning"))
        if in_column:
            self.warnings.append(f"task {name}: the column reasoning is ignored: {cause}")
        if inline:
            self.warnings.append(
                f"task {name}: completions begin with a thought (<think>), which is trained and scored as a part of "
                f"the completion: {cause}; write reasoning: false to leave the thoughts out"
            )
        return "keep"


def settle(example: Example, mode: Mode, markers: ReasoningMarkers | None) -> Example:
    """The example in the form of its task: its thought in `reasoning`, or left out.

    Raises DataError, without a location, for a thought that does not end, two different thoughts, an answer that is
    empty without its thought, and a thought in a task that trains none.
    """
    if mode == "none" and (example.reasoning or _has_thought(example, markers)):
        raise DataError(
            f"has reasoning, but the first {PEEKED_ROWS:,} rows of the task have none, or too few of them; write "
            "reasoning: true to train it, or reasoning: false to leave it out"
        )
    if mode in ("none", "keep"):
        if example.reasoning is None and example.turns is None:
            return example
        return replace(example, reasoning=None, turns=_without_thoughts(example.turns))
    if markers is None or not markers.is_trainable:
        markers = THINK_TAGS
    if example.turns is not None:
        return _settle_turns(example, example.turns, mode, markers)
    reasoning, completion = example.reasoning or "", example.completion
    if completion is not None:
        reasoning, completion = _thought_and_answer(reasoning, completion, markers)
    return replace(example, completion=completion, reasoning=reasoning if mode == "train" else None)


def _settle_turns(example: Example, turns: Conversation, mode: Mode, markers: ReasoningMarkers) -> Example:
    messages = [_settle_message(message, mode, markers) for message in turns.messages]
    # A column `reasoning` is the thought of the row's last answer.
    last = turns.supervised_turns[-1] if turns.supervised_turns else None
    if last is not None and example.reasoning and mode == "train":
        thought, _ = _thought_and_answer(example.reasoning, "", markers, messages[last].get("reasoning_content"))
        messages[last] = {**messages[last], "reasoning_content": thought}
    settled = replace(turns, messages=messages, with_reasoning=mode == "train")
    if last is None:
        return replace(example, turns=settled, reasoning="" if mode == "train" else None)
    reasoning = messages[last].get("reasoning_content", "")
    completion = example.completion
    if messages[last]["content"] != turns.messages[last]["content"] and completion is not None:
        completion = completion.replace(turns.messages[last]["content"], messages[last]["content"])
    return replace(example, turns=settled, completion=completion, reasoning=reasoning if mode == "train" else None)


def _settle_message(message: Message, mode: Mode, markers: ReasoningMarkers) -> Message:
    if message["role"] != "assistant":
        return message
    thought, content = _thought_and_answer(
        message.get("reasoning_content") or "",
        message["content"],
        markers,
        may_be_empty=bool(message.get("tool_calls")),
    )
    settled = {key: value for key, value in message.items() if key != "reasoning_content"} | {"content": content}
    return settled | {"reasoning_content": thought} if thought and mode == "train" else settled


def _thought_and_answer(
    thought: str, text: str, markers: ReasoningMarkers, inline_thought: str | None = None, may_be_empty: bool = False
) -> tuple[str, str]:
    """The thought and the answer of a text that may begin with its thought."""
    try:
        inline = split_inline_thought(text, markers)
    except ValueError as error:
        raise DataError(f"the completion {error}; close it, or drop the row") from None
    answer = text
    if inline is not None:
        inline_thought, answer = inline
        if not answer.strip() and not may_be_empty:
            raise DataError("the completion is only a thought, without an answer; drop the row")
    if inline_thought and thought.strip() and inline_thought.strip() != thought.strip():
        raise DataError("has two different thoughts, in its reasoning and in its completion; keep one of them")
    return thought.strip() or inline_thought or "", answer


def _has_inline_thoughts(examples: Collection[Example], markers: ReasoningMarkers | None) -> bool:
    """Whether completions or messages of a task have thoughts: any with its opening marker, or many without."""
    known = (THINK_TAGS,) if markers is None else (markers, THINK_TAGS)
    num_unopened = 0
    for example in examples:
        for text in _answers(example):
            if any(marker.open and text.lstrip().startswith(marker.open) for marker in known):
                return True
        if example.turns is not None and any(message.get("reasoning_content") for message in example.turns.messages):
            return True
        num_unopened += _has_thought(example, markers)
    return num_unopened > 0 and num_unopened >= MIN_UNOPENED_SHARE * len(examples)


def _answers(example: Example) -> list[str]:
    """The texts of an example that the model is to write, or has written."""
    if example.turns is None:
        return [] if example.completion is None else [example.completion]
    return [message["content"] for message in example.turns.messages if message["role"] == "assistant"]


def _has_thought(example: Example, markers: ReasoningMarkers | None) -> bool:
    """Whether a completion or a message of the example has a thought."""
    if example.turns is None:
        return _text_has_thought(example.completion, markers)
    return any(
        bool(message.get("reasoning_content")) or _text_has_thought(message["content"], markers)
        for message in example.turns.messages
        if message["role"] == "assistant"
    )


def _text_has_thought(text: str | None, markers: ReasoningMarkers | None) -> bool:
    known = (THINK_TAGS,) if markers is None else (markers, THINK_TAGS)
    return text is not None and any(
        marker.close in text or (marker.open and text.lstrip().startswith(marker.open)) for marker in known
    )


def _without_thoughts(turns: Conversation | None) -> Conversation | None:
    """The conversation without the thoughts that its messages have as keys."""
    if turns is None or not any("reasoning_content" in message for message in turns.messages):
        return turns
    messages = [
        {key: value for key, value in message.items() if key != "reasoning_content"} for message in turns.messages
    ]
    return replace(turns, messages=messages)
