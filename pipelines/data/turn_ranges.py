"""The turns of a tokenized conversation: which tokens belong to which message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation, Message
from pipelines.data.prompt_format import EncodedExample, PromptFormat, prompt_length
from pipelines.data.rendering import RenderedConversation
from pipelines.modeling.token_sequences import Span


@dataclass(frozen=True)
class TurnRange:
    """The tokens of one turn, with what the chat template writes around its text.

    Attributes:
        role: system, user, assistant or tool; "template" for a turn that the chat template writes by itself, such as
            its own system turn, before a conversation that begins with another one.
        start, end: the half-open range of its tokens.
        supervised: the part of it that is supervised; None if none of it is.
    """

    role: str
    start: int
    end: int
    supervised: Span | None


def turn_ranges(conversation: Conversation, encoded: EncodedExample, prompt_format: PromptFormat) -> list[TurnRange]:
    """The turns of a conversation through its last supervised one, in order. Together they are all its tokens.

    A system turn that the template does not support is part of the first user turn.

    encoded: the tokens of the conversation, as `prompt_format` encodes it.
    """
    rendered = prompt_format.render(conversation)
    messages, turns = list(conversation.messages), list(conversation.supervised_turns)
    if prompt_format.template is not None:
        messages, turns = prompt_format.renderer.normalize(conversation)
    if turns:
        messages = messages[: turns[-1] + 1]
    spans = dict(zip(turns[-len(rendered.spans) :], rendered.spans, strict=True)) if rendered.spans else {}
    ends = _turn_ends(messages, conversation, rendered, spans, prompt_format)
    roles = [str(message["role"]) for message in messages]
    numbers = list(range(len(messages)))
    prompt = rendered.text[: prompt_length(rendered)]
    if own_end := _end_of_own_turn(prompt, messages, prompt_format):
        ends, roles, numbers = [own_end, *ends], ["template", *roles], [-1, *numbers]
    positions = [(position, position) for position in ends]
    token_ends = [end for _, end in prompt_format.token_spans(prompt, positions, encoded.prompt_ids)]
    supervised = dict(zip(spans, encoded.supervised_spans, strict=True))
    starts = [0, *token_ends]
    return [
        TurnRange(role, start, end, supervised.get(number))
        for role, number, start, end in zip(roles, numbers, starts, [*token_ends, len(encoded.input_ids)], strict=True)
    ]


def _end_of_own_turn(prompt: str, messages: Sequence[Message], prompt_format: PromptFormat) -> int:
    """The position after the turn that the template writes before the first message; 0 if there is none."""
    if prompt_format.template is None or messages[0]["role"] == "system":
        return 0
    content_start, _ = _find_content(prompt, messages[0], 0, 0)
    return _after_end_of_turn(prompt, 0, content_start, prompt_format)


def _turn_ends(
    messages: Sequence[Message],
    conversation: Conversation,
    rendered: RenderedConversation,
    spans: Mapping[int, Span],
    prompt_format: PromptFormat,
) -> list[int]:
    """The position in the rendered text where each turn but the last ends, ascending.

    A turn ends after its end of turn and the white space there. Without one, it ends where the rendering of the
    conversation through it does.
    """
    text, last = rendered.text, prompt_length(rendered)
    end_of_turn = "" if prompt_format.template is None else prompt_format.renderer.end
    ends: list[int] = []
    for index in range(len(messages) - 1):
        start = ends[-1] if ends else 0
        content_end = max(_find_content(text, messages[index], start, start)[1], spans.get(index, (0, 0))[1])
        next_start, _ = spans.get(index + 1) or _find_content(text, messages[index + 1], content_end, last)
        if index in spans and end_of_turn and text.endswith(end_of_turn, 0, content_end):
            end = _after_white_space(text, content_end)
        elif (end := _after_end_of_turn(text, content_end, next_start, prompt_format)) == content_end:
            through = _rendered_through(messages[: index + 1], conversation, prompt_format)
            end = max(_after_control_token(text, len(commonprefix([text, through])), prompt_format), content_end)
        ends.append(max(min(end, next_start, last), start))
    return ends


def _find_content(text: str, message: Message, position: int, default: int) -> Span:
    """The range of a message's content in the text after `position`; empty, at `default`, if the text lacks it."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    # An answer may begin with a thought, which the template leaves out or moves.
    content = str(content or "").rpartition("</think>")[2].strip()
    start = text.find(content, position)
    return (start, start + len(content)) if content and start >= 0 else (default, default)


def _after_end_of_turn(text: str, start: int, end: int, prompt_format: PromptFormat) -> int:
    """The position after the first end of turn in a range of the text, and the white space that follows it; `start`
    if there is none."""
    end_of_turn = "" if prompt_format.template is None else prompt_format.renderer.end
    found = text.find(end_of_turn, start, end) if end_of_turn else -1
    return _after_white_space(text, found + len(end_of_turn)) if found >= 0 else start


def _after_white_space(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())


def _rendered_through(messages: Sequence[Message], conversation: Conversation, prompt_format: PromptFormat) -> str:
    """The text of the first turns; empty if there is no template, or it refuses a conversation that ends there."""
    if prompt_format.template is None:
        return ""
    try:
        return prompt_format.template.render(messages, tools=conversation.tools, kwargs=conversation.template_kwargs)
    except ChatTemplateError:
        return ""


def _after_control_token(text: str, position: int, prompt_format: PromptFormat) -> int:
    """`position`, or the end of the control token that it is inside of."""
    for token in prompt_format.control_tokens:
        start = text.rfind(token, max(0, position - len(token) + 1), position + len(token) - 1)
        if 0 <= start < position < start + len(token):
            return start + len(token)
    return position
