"""Supervised spans: which characters of a rendered conversation a model is trained to write.

An answer is found by rendering another answer in its place. Its span goes through the end of its turn.
"""

from __future__ import annotations

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
    lost_calls,
)
from pipelines.data.conversation import Conversation, Message
from pipelines.data.template_form import ANSWER, TemplateForm

if TYPE_CHECKING:
    from pipelines.data.reasoning import ReasoningMarkers

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


class SupervisedSpans(TemplateForm):
    """Finds the spans of answers in the text of a chat template.

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
        if any(message.get("tool_calls") for message in messages):
            if self.call_form is None:
                raise lost_calls()
            messages = self.call_form.apply(messages)
        return self._in_form(messages), turns

    def _thinks(self, conversation: Conversation) -> bool:
        kwargs = {**self.template.variables, **conversation.template_kwargs}
        return conversation.with_reasoning or any(kwargs.get(key) is True for key in _THINKING_KEYS)

    def _check_end_of_thought(self) -> None:
        """Raises ChatTemplateError if the token that ends an answer ends a thought as well: completions would stop
        before the answer."""
        markers, stop = self._markers(), self._stop_token
        if markers is not None and stop and stop in markers.between:
            raise ChatTemplateError(
                f"{TEMPLATE} ends a thought with {stop}, which also ends an answer, so a completion would stop after "
                "its thought; remove `reasoning`, and switch the thought off in chat_template_kwargs"
            )

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

    def _written_span(
        self, text: str, messages: Sequence[Message], turn: int, conversation: Conversation
    ) -> tuple[int, int]:
        """The range of what the model writes in a turn: its answer, from the generation prompt on if that may be
        followed by a thought or a call."""
        start, end = self._answer_span(text, messages, turn, conversation)
        if self._thinks(conversation) or messages[turn].get("tool_calls"):
            start = self._thought_start(text, messages, turn, conversation, start)
        check_calls(text[start:end], messages[turn])
        return start, end

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

        It begins where the text leaves the generation prompt. If the conversation through this turn is rendered in
        another way than within the whole, as where only a last turn has a thought, the call is found by rendering
        another one, or the range is that of an answer without calls in its place.
        """
        through = self._render(messages[: turn + 1], conversation)
        prompt = self._render(messages[:turn], conversation, add_generation_prompt=True)
        start = len(prompt) if text.startswith(prompt) else self._whole_token(text, len(commonprefix([text, prompt])))
        common = commonprefix([text, through])
        written = common.rfind(messages[turn]["tool_calls"][-1]["function"]["name"], start)
        # The generation prompt of the next turn may follow the end of this one in either text.
        if written >= 0 and (stop := self._stop_token) and (end := common.find(stop, written)) >= 0:
            return start, end + len(stop)
        # Without a token after the call, the turn is all that the template writes for it.
        through = (
            self._through_last_token(through)
            if written < 0
            else through[:written] + (self._through_last_token(through[written:]) or through[written:].rstrip())
        )
        if through and text.startswith(through) and start < len(through):
            return start, len(through)
        if (moved := self._moved_call_span(text, prompt, messages, turn, conversation)) is not None:
            return moved
        without_calls = {key: value for key, value in messages[turn].items() if key != "tool_calls"}
        try:
            replaced = [*messages[:turn], without_calls, *messages[turn + 1 :]]
            return self._answer_span(text, replaced, turn, conversation)
        except ChatTemplateError:
            raise ChatTemplateError(
                f"{TEMPLATE} does not support a turn with tool calls in this place; {DISABLE_HINT}"
            ) from None

    def _moved_call_span(
        self, text: str, prompt: str, messages: Sequence[Message], turn: int, conversation: Conversation
    ) -> tuple[int, int] | None:
        """The range of a turn with tool calls after a text that depends on what follows the turn, as where the tools
        stand before the last user turn. None if the turn before it cannot be found in the text."""
        call = messages[turn]["tool_calls"][-1]
        renamed = {**call, "function": {**call["function"], "name": ANSWER}}
        message = {**messages[turn], "tool_calls": [*messages[turn]["tool_calls"][:-1], renamed]}
        try:
            other = self._render([*messages[:turn], message, *messages[turn + 1 :]], conversation)
        except ChatTemplateError:
            return None
        written = len(commonprefix([text, other]))
        content = _content_text(messages[turn - 1]).strip()
        tail = prompt[prompt.rfind(content) :] if content and content in prompt else ""
        start = text.rfind(tail, 0, written + 1) if tail else -1
        end = text.find(self._stop_token, written) if self._stop_token else -1
        return (start + len(tail), end + len(self._stop_token)) if start >= 0 and end >= 0 else None

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
        turns: Sequence[int],
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
        earlier = list(spans[:-1])
        if earlier and joined[: earlier[-1][1]] != text[: earlier[-1][1]]:
            # The template treats the last answer of a text specially, and in the prompt that is an earlier one.
            before = self._render(messages[:-1], conversation)
            rewritten = [self._written_span(before, messages[:-1], turn, conversation) for turn in turns[:-1]]
            # Spans are those of the last turns, so that of a turn after which the texts differ removes all before it.
            earlier = rewritten if joined.startswith(before[: rewritten[-1][1]]) else []
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
            check_calls(text[start:end], messages[turn])
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
