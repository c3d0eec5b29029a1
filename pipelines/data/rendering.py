"""Rendering of conversations: the text of a chat template, and which of its characters a model is trained to write.

The template renders the whole conversation. What is supervised is a span of that text: an answer, found by rendering
another answer in its place, through the end of its turn. The prompt of an evaluation is what precedes the span, so a
template that writes an empty thought or a channel before the answer has it in the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from pipelines.data.chat_template import (
    DISABLE_HINT,
    OMIT_SYSTEM_HINT,
    TEMPLATE,
    ChatTemplate,
    ChatTemplateError,
    check_calls,
    check_contains,
)
from pipelines.data.conversation import Conversation, Message
from pipelines.data.template_form import ANSWER, PROMPT, TemplateForm

if TYPE_CHECKING:
    from pipelines.data.reasoning import ReasoningMarkers

_VERBATIM_TESTS = (" \n a <b> {{c}}\n\n ", "\t'd' \"e\" & f ", "x")
"""Contents that a template changes if it strips, escapes or parses its messages."""
_MAY_BE_PARSED = re.compile(r"</|<\||\[/|\|>|think|<\w+>", re.IGNORECASE)
"""Text that some templates look for in a message, so that the message is rendered, not pasted."""
_THINKING_KEYS = ("enable_thinking", "thinking")
"""Variables of templates that switch a model's thought on."""


@dataclass(frozen=True)
class RenderedConversation:
    """The text of a conversation, through the end of its last supervised turn.

    Attributes:
        text: without a supervised turn, the prompt of the turn that follows.
        spans: the half-open ranges of characters that are supervised, one per supervised turn, in order.
        lacks_end: whether the template writes no end of turn, so that the tokenizer's EOS has to follow.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    lacks_end: bool = False


@dataclass(frozen=True)
class _Affixes:
    """The texts around a prompt and its answer, and how the template prints the two."""

    before: str
    between: str
    print_prompt: Callable[[str], str]
    print_answer: Callable[[str], str]


class ConversationRenderer(TemplateForm):
    """Renders conversations with one chat template.

    Args:
        template: the chat template with its variables.
        control_tokens: the texts of the special and added tokens of the tokenizer.
        bos: the text of the token that begins every sequence, if there is one.
        markers: returns how the model marks its thought, None if it does not.
    """

    def __init__(
        self,
        template: ChatTemplate,
        control_tokens: Sequence[str],
        bos: str | None,
        markers: Callable[[], ReasoningMarkers | None],
    ) -> None:
        super().__init__(template, control_tokens, bos)
        self._markers = markers
        self._affixes: dict[str, _Affixes | None] = {}

    def notes(self, has_system: bool, has_tools: bool = False) -> list[str]:
        """What a user should know about the texts that this template writes, as sentences without a full stop.

        has_system, has_tools: whether conversations have a system turn, and a list of tools.
        """
        notes = []
        if has_system and self.merges_system:
            notes.append(f"{TEMPLATE} has no system turn; the text of `system` is put before the first user turn")
        if has_tools and not self.lists_tools:
            notes.append(f"{TEMPLATE} does not list tools; the column of `tools` has no effect")
        if not self.end:
            notes.append(f"{TEMPLATE} writes nothing after an answer; the tokenizer's end-of-text token is added")
        if (affixes := self._affixes_of(None, Conversation(()))) and affixes.print_answer("\n x ") != "\n x ":
            notes.append(f"{TEMPLATE} strips the white space around a completion, which is trained without it")
        return notes

    # --- conversations ---

    def render(self, conversation: Conversation) -> RenderedConversation:
        """The text of a conversation with its supervised spans. Raises ChatTemplateError."""
        _ = self.end  # a template that prints no answers is refused, also for prompts
        if (pasted := self._paste(conversation)) is not None:
            return pasted
        messages, turns = self.normalize(conversation)
        if not turns:
            return RenderedConversation(self._prompt(messages, conversation))
        messages = messages[: turns[-1] + 1]
        text = self._render(messages, conversation)
        self._check_contents(text, messages)
        thinks = self._thinks(conversation)
        # Tags mark answers, not the thoughts that the model writes before them.
        if not thinks and (tagged := self._tagged_spans(messages, conversation, turns, text)) is not None:
            return tagged
        spans = []
        for turn in turns:
            start, end = self._answer_span(text, messages, turn, conversation)
            if thinks or messages[turn].get("tool_calls"):
                start = self._thought_start(text, messages, turn, conversation, start)
            check_calls(text[start:end], messages[turn])
            spans.append((start, end))
        if thinks and not self._begins_with_thought(text, spans[-1][0], messages, conversation):
            return self._insert_thought(text, spans, messages, conversation)
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

    def normalize(self, conversation: Conversation) -> tuple[list[Message], list[int]]:
        """The messages in the form that the template prints, and the indices of the supervised turns among them."""
        messages, turns = list(conversation.messages), list(conversation.supervised_turns)
        if messages[0]["role"] == "system" and self.merges_system:
            system, *rest = messages
            first = next((index for index, message in enumerate(rest) if message["role"] == "user"), None)
            if first is None:
                raise ChatTemplateError(f"{TEMPLATE} does not support a system turn; {OMIT_SYSTEM_HINT}", "system")
            rest[first] = {**rest[first], "content": f"{system['content']}\n\n{rest[first]['content']}"}
            messages, turns = rest, [turn - 1 for turn in turns]
        return self._in_form(messages), turns

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

    def _thinks(self, conversation: Conversation) -> bool:
        kwargs = {**self.template.variables, **conversation.template_kwargs}
        return conversation.with_reasoning or any(kwargs.get(key) is True for key in _THINKING_KEYS)

    # --- spans ---

    def _answer_span(
        self, text: str, messages: Sequence[Message], turn: int, conversation: Conversation
    ) -> tuple[int, int]:
        """The range of an answer in the rendered `text`, through the end of its turn if that can be supervised."""
        if messages[turn].get("tool_calls"):
            return self._tool_call_span(text, messages, turn, conversation)
        sentinel = ANSWER
        while sentinel in text:
            sentinel += "x"
        message = {**messages[turn], "content": sentinel}
        message = self._in_form([message])[0]
        other = self._render([*messages[:turn], message, *messages[turn + 1 :]], conversation)
        before, found, after = other.rpartition(sentinel)
        if not found or not text.startswith(before) or not text.endswith(after) or len(before) + len(after) > len(text):
            raise ChatTemplateError(
                f"{TEMPLATE} writes other text around an answer depending on what the answer is, so it cannot be "
                f"determined what the model is to write; {DISABLE_HINT}"
            )
        return len(before), len(text) - len(after) + len(self._end_of_turn(after, turn == len(messages) - 1))

    def _end_of_turn(self, after: str, is_last: bool) -> str:
        """What the end of a turn is in the text after its answer.

        In the middle of a conversation some templates write another token than at its end. It is not supervised: the
        model would not stop at it.
        """
        if after.startswith(self.end):
            return self.end
        return "".join(self._first_tokens(after)) if is_last else ""

    def _tool_call_span(
        self, text: str, messages: Sequence[Message], turn: int, conversation: Conversation
    ) -> tuple[int, int]:
        """The range of a turn with tool calls, which the template writes in its own form.

        If the conversation through this turn is rendered in another way than within the whole, as where only a last
        turn has a thought, the range is that of an answer without calls in its place.
        """
        through = self._through_last_token(self._render(messages[: turn + 1], conversation))
        start = len(self._render(messages[:turn], conversation, add_generation_prompt=True))
        if through and text.startswith(through) and start < len(through):
            return start, len(through)
        without_calls = {key: value for key, value in messages[turn].items() if key != "tool_calls"}
        try:
            replaced = [*messages[:turn], without_calls, *messages[turn + 1 :]]
            return self._answer_span(text, replaced, turn, conversation)
        except ChatTemplateError:
            raise ChatTemplateError(
                f"{TEMPLATE} does not support a turn with tool calls in this place; {DISABLE_HINT}"
            ) from None

    def _thought_start(
        self, text: str, messages: Sequence[Message], turn: int, conversation: Conversation, answer_start: int
    ) -> int:
        """Where the model begins to write: at the end of its generation prompt, if the text has that."""
        prompt = self._render(messages[:turn], conversation, add_generation_prompt=True)
        return len(prompt) if text.startswith(prompt) and len(prompt) <= answer_start else answer_start

    def _begins_with_thought(
        self, text: str, start: int, messages: Sequence[Message], conversation: Conversation
    ) -> bool:
        """Whether the supervised text of the last turn follows its generation prompt and begins with its thought."""
        if text[:start] != self._render(messages[:-1], conversation, add_generation_prompt=True):
            return False
        thought = str(messages[-1].get("reasoning_content") or "").strip()
        markers = self._markers()
        if thought:
            return thought in text[start:]
        return markers is None or not conversation.with_reasoning or markers.close in text[start:]

    def _insert_thought(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        messages: Sequence[Message],
        conversation: Conversation,
    ) -> RenderedConversation:
        """The text with the thought of the last turn, for a template that leaves thoughts out: it is written as the
        model writes it, after the generation prompt."""
        markers = self._markers()
        thought = str(messages[-1].get("reasoning_content") or "").strip()
        if markers is None:
            if thought:
                raise ChatTemplateError(f"{TEMPLATE} writes no reasoning; remove `reasoning`, or {DISABLE_HINT}")
            return self._cut(text, spans)
        prompt = self._render(messages[:-1], conversation, add_generation_prompt=True)
        if prompt.rstrip().endswith(markers.close):
            if conversation.with_reasoning:
                raise ChatTemplateError(
                    f"{TEMPLATE} ends the thought in every prompt, so the model cannot write its reasoning; write "
                    "chat_template_kwargs: {enable_thinking: true}, or reasoning: false to leave the reasoning out"
                )
            written = ""
        else:
            written = f"{thought}{markers.between}" if markers.opened_by(prompt) else markers.wrap(thought)
        start, end = spans[-1]
        answer_start = self._answer_span(text, messages, len(messages) - 1, conversation)[0]
        joined = f"{prompt}{written}{text[max(start, answer_start) : end]}"
        # The earlier turns are the same in both texts, unless the template treats the last turn of a text specially.
        earlier = [span for span in spans[:-1] if joined[: span[1]] == text[: span[1]]]
        return self._cut(joined, [*earlier, (len(prompt), len(joined))])

    def _tagged_spans(
        self, messages: Sequence[Message], conversation: Conversation, turns: Sequence[int], text: str
    ) -> RenderedConversation | None:
        """The spans that the template's own `{% generation %}` tags mark; None if it has no such tags.

        They are limited to what the model writes: without the generation prompt, and through the end of the turn.
        """
        if not self.template.has_generation_tags:
            return None
        blocks = self.template.generation_spans(messages, conversation.tools, conversation.template_kwargs)
        assistants = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(blocks) != len(assistants):
            return None
        spans = []
        for turn in turns:
            start, end = blocks[assistants.index(turn)]
            prompt = self._render(messages[:turn], conversation, add_generation_prompt=True)
            answer_start = self._answer_span(text, messages, turn, conversation)[0]
            start = max(start, min(len(commonprefix([text, prompt])), answer_start))
            content = text[start:end]
            position = content.rfind(self.end) if self.end else -1
            if position >= 0 and not content[position + len(self.end) :].strip():
                end = start + position + len(self.end)
            elif self.end and text.startswith(self.end, end):
                end += len(self.end)
            spans.append((start, end))
        return self._cut(text, spans)

    def _cut(self, text: str, spans: Sequence[tuple[int, int]]) -> RenderedConversation:
        """The text through the end of the last span. An end that stands only before a next turn is added."""
        start, end = spans[-1]
        cut = text[:end]
        if not self._ends_with_token(cut[start:]):
            cut += self.end
        return RenderedConversation(cut, (*spans[:-1], (start, len(cut))), not self.end)

    # --- calls of the template ---

    def _check_contents(self, text: str, messages: Sequence[Message]) -> None:
        """Raises ChatTemplateError if the text of a user or system turn is not in the rendering."""
        for message in messages:
            if message["role"] in ("user", "system") and (content := _content_text(message)):
                key = "system" if message["role"] == "system" else "chat_template"
                check_contains(text, content, f"the {message['role']} turn", key)
            check_calls(text, message)

    def _render(
        self, messages: Sequence[Message], conversation: Conversation, add_generation_prompt: bool = False
    ) -> str:
        return self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=conversation.tools,
            kwargs=self.template_variables(conversation),
        )

    def template_variables(self, conversation: Conversation) -> Mapping[str, Any]:
        """The variables of the template for a conversation. Reasoning switches the thought on, unless a variable says
        otherwise."""
        given = {**self.template.variables, **conversation.template_kwargs}
        if not conversation.with_reasoning or any(key in given for key in _THINKING_KEYS):
            return conversation.template_kwargs
        return {**dict.fromkeys(_THINKING_KEYS, True), **conversation.template_kwargs}


def _content_text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""
