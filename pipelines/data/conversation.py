"""Conversations: what a chat template renders, and which of its turns are supervised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.storage.strict_json import dump

Message = dict[str, Any]
"""One turn: `role` (system, user, assistant or tool) and `content` (text). An assistant's turn may have
`reasoning_content` (the thought before the answer) and `tool_calls`; a tool's turn `name` and `tool_call_id`."""


@dataclass(frozen=True)
class Conversation:
    """The messages that a chat template renders as one text.

    Attributes:
        messages: all turns, the system turn first if there is one.
        supervised_turns: the indices in `messages` of the assistant's turns that are trained or evaluated, in order.
            Without any, the conversation is a prompt that the model has to answer.
        tools: the JSON schemas of the tools that the template lists, or None.
        template_kwargs: variables of the chat template for this conversation, over those of the prompt format.
        with_reasoning: whether the model is to write its reasoning before the answer. Then the supervised span begins
            where the generation prompt ends; otherwise at the answer, after whatever the template writes before it,
            such as an empty thought.
    """

    messages: Sequence[Message]
    supervised_turns: tuple[int, ...] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    with_reasoning: bool = False

    @classmethod
    def single_turn(
        cls,
        prompt: str,
        completion: str | None = None,
        system: str | None = None,
        reasoning: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """A user turn, after a system turn if `system` is not empty, and the assistant's answer if there is one."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        if completion is None:
            return cls(messages, template_kwargs=template_kwargs or {}, with_reasoning=reasoning is not None)
        answer: Message = {"role": "assistant", "content": completion}
        if reasoning:
            answer["reasoning_content"] = reasoning
        messages.append(answer)
        return cls(
            messages,
            supervised_turns=(len(messages) - 1,),
            template_kwargs=template_kwargs or {},
            with_reasoning=reasoning is not None,
        )

    def to_json(self) -> str:
        """The conversation as JSON, for `from_json`."""
        return dump(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The conversation that `to_json` has written."""
        values = json.loads(text)
        return cls(**{**values, "supervised_turns": tuple(values["supervised_turns"])})
