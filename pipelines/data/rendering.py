"""Rendering of conversations: the text of a chat template, and which of its characters a model is trained to write.

The template renders the whole conversation. What is supervised are spans of that text, see `supervised_spans`. The
prompt of an evaluation is what precedes the last span, so a template that writes an empty thought or a channel before
the answer has it in the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.data.chat_template import TEMPLATE, check_contains
from pipelines.data.conversation import Conversation, Message
from pipelines.data.supervised_spans import RenderedConversation, SupervisedSpans
from pipelines.data.template_form import ANSWER, PROMPT

_VERBATIM_TESTS = (" \n a <b> {{c}}\n\n ", "\t'd' \"e\" & f ", "x")
"""Contents that a template changes if it strips, escapes or parses its messages."""
_MAY_BE_PARSED = re.compile(r"</|<\||\[/|\|>|think|<\w+>", re.IGNORECASE)
"""Text that some templates look for in a message, so that the message is rendered, not pasted."""


@dataclass(frozen=True)
class _Affixes:
    """The texts around a prompt and its answer, and how the template prints the two."""

    before: str
    between: str
    print_prompt: Callable[[str], str]
    print_answer: Callable[[str], str]


class ConversationRenderer(SupervisedSpans):
    """Renders conversations with one chat template."""

    @cached_property
    def _affixes(self) -> dict[str, _Affixes | None]:
        """The texts around prompts by system turn and variables, as they are found."""
        return {}

    def notes(self, has_system: bool, has_tools: bool = False) -> list[str]:
        """What a user should know about the texts that this template writes, as sentences without a full stop.

        has_system, has_tools: whether conversations have a system turn, and a list of tools.
        """
        notes = []
        if has_system and self.merges_system:
            notes.append(f"{TEMPLATE} has no system turn; the text of `system` is put before the first user turn")
        if has_tools and not self.lists_tools:
            notes.append(f"{TEMPLATE} does not list tools; the column of `tools` has no effect")
        if self.template.needs_tools and not has_tools:
            notes.append(f"{TEMPLATE} is for conversations with tools; it gets an empty list of them")
        if not self.end:
            notes.append(f"{TEMPLATE} writes nothing after an answer; the tokenizer's end-of-text token is added")
        if (affixes := self._affixes_of(None, Conversation(()))) and affixes.print_answer("\n x ") != "\n x ":
            notes.append(f"{TEMPLATE} strips the white space around a completion, which is trained without it")
        return notes

    def render(self, conversation: Conversation) -> RenderedConversation:
        """The text of a conversation with its supervised spans. Raises ChatTemplateError."""
        _ = self.end  # a template that prints no answers is refused, also for prompts
        if (pasted := self._paste(conversation)) is not None:
            return pasted
        thinks = self._thinks(conversation)
        if thinks:
            self._check_end_of_thought()
        messages, turns = self.normalize(conversation)
        if not turns:
            return RenderedConversation(self._prompt(messages, conversation))
        messages = messages[: turns[-1] + 1]
        text = self._render(messages, conversation)
        self._check_contents(text, messages)
        # Tags mark answers, not the thoughts that the model writes before them.
        if not thinks and (tagged := self._tagged_spans(messages, conversation, turns, text)) is not None:
            return tagged
        spans = [self._written_span(text, messages, turn, conversation) for turn in turns]
        if thinks and not self._begins_with_thought(text, spans[-1][0], messages, conversation):
            return self._insert_thought(text, spans, messages, turns, conversation)
        return self._cut(text, spans)

    def _paste(self, conversation: Conversation) -> RenderedConversation | None:
        """The rendering of one prompt and its answer, pasted between the texts around them. None if the template has
        to render it: rendering a million rows would take longer than tokenizing them."""
        roles = [message["role"] for message in conversation.messages]
        has_system = roles[:1] == ["system"]
        if roles[has_system:] not in (["user"], ["user", "assistant"]) or self._thinks(conversation):
            return None
        if len(roles) - has_system != 1 + len(conversation.supervised_turns) or conversation.tools:
            return None
        contents = conversation.messages[has_system:]
        if any(
            set(message) != {"role", "content"} or _MAY_BE_PARSED.search(message["content"]) for message in contents
        ):
            return None
        system = conversation.messages[0]["content"] if has_system else None
        affixes = self._affixes_of(system, conversation)
        if affixes is None:
            return None
        prompt = f"{affixes.before}{affixes.print_prompt(contents[0]['content'])}{affixes.between}"
        if len(contents) == 1:
            return RenderedConversation(prompt)
        answer = affixes.print_answer(contents[1]["content"])
        text = f"{prompt}{answer}{self.end}"
        return RenderedConversation(text, ((len(prompt), len(text)),), not self.end)

    def _affixes_of(self, system: str | None, conversation: Conversation) -> _Affixes | None:
        """The texts around prompts with this system turn; None if the template does more than strip their contents."""
        key = json.dumps([system, dict(conversation.template_kwargs)], sort_keys=True, default=str)
        if key not in self._affixes:
            self._affixes[key] = self._find_affixes(system, conversation)
        return self._affixes[key]

    def _find_affixes(self, system: str | None, conversation: Conversation) -> _Affixes | None:
        if self.template.has_generation_tags:
            return None

        def rendered(prompt: str, answer: str) -> RenderedConversation:
            single = Conversation.single_turn(prompt, answer, system, template_kwargs=conversation.template_kwargs)
            messages, turns = self.normalize(single)
            text = self._render(messages, single)
            self._check_contents(text, messages)
            return self._cut(text, [self._answer_span(text, messages, turns[-1], single)])

        example = rendered(PROMPT, ANSWER)
        if example.text.count(PROMPT) != 1 or example.text.count(ANSWER) != 1:
            return None
        before, _, rest = example.text.partition(PROMPT)
        between = rest.partition(ANSWER)[0]
        for strip in (str, str.strip):
            for strip_answer in (str, str.strip, str.lstrip, str.rstrip):
                affixes = _Affixes(before, between, strip, strip_answer)
                if all(
                    rendered(prompt, answer).text == f"{before}{strip(prompt)}{between}{strip_answer(answer)}{self.end}"
                    for prompt in _VERBATIM_TESTS
                    for answer in _VERBATIM_TESTS
                ):
                    return affixes
        return None

    def _prompt(self, messages: Sequence[Message], conversation: Conversation) -> str:
        """The prompt of the turn after `messages`."""
        if self._thinks(conversation):
            text = self._render(messages, conversation, add_generation_prompt=True)
        else:
            answer = self._in_form([{"role": "assistant", "content": ANSWER}])
            whole = self._render([*messages, *answer], conversation)
            check_contains(whole, ANSWER, "the assistant's answer")
            tagged = self._tagged_spans([*messages, *answer], conversation, [len(messages)], whole)
            text = whole.rpartition(ANSWER)[0] if tagged is None else whole[: tagged.spans[-1][0]]
        self._check_contents(text, messages)
        return text
