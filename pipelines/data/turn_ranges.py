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
        role: system, user, assistant or tool.
        start, end: the half-open range of its tokens.
        supervised: the part of it that is supervised; None if none of it is.
    """

    role: str
    start: int
    end: int
    supervised: Span | None


def turn_ranges(conversation: Conversation, encoded: EncodedExample, prompt_format: PromptFormat) -> list[TurnRange]:
    """The turns of a conversation through its last supervised one, in order. Together they are all its tokens.

    What the template writes before the first turn belongs to it. A system turn that the template does not support is
    part of the first user turn.

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
    prompt = rendered.text[: prompt_length(rendered)]
    positions = [(position, position) for position in ends]
    token_ends = [end for _, end in prompt_format.token_spans(prompt, positions, encoded.prompt_ids)]
    supervised = dict(zip(spans, encoded.supervised_spans, strict=True))
    starts = [0, *token_ends]
    return [
        TurnRange(str(message["role"]), start, end, supervised.get(index))
        for index, (message, start, end) in enumerate(
            zip(messages, starts, [*token_ends, len(encoded.input_ids)], strict=True)
        )
    ]


def _turn_ends(
    messages: Sequence[Message],
    conversation: Conversation,
    rendered: RenderedConversation,
    spans: Mapping[int, Span],
    prompt_format: PromptFormat,
) -> list[int]:
    """The position in the rendered text where each turn but the last ends, ascending.

    A turn ends where the rendering of the conversation through it does. If that is other text, as without the thought
    of an earlier answer, it ends at the end of turn before the next content.
    """
    text, last = rendered.text, prompt_length(rendered)
    ends: list[int] = []
    for index in range(len(messages) - 1):
        start = ends[-1] if ends else 0
        content_end = max(_find_content(text, messages[index], start, start)[1], spans.get(index, (0, 0))[1])
        next_start, _ = spans.get(index + 1) or _find_content(text, messages[index + 1], content_end, last)
        through = _rendered_through(messages[: index + 1], conversation, prompt_format)
        end = _after_control_token(text, len(commonprefix([text, through])), prompt_format)
        if end <= content_end:
            end = _after_end_of_turn(text, content_end, next_start, prompt_format)
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
    """The position after the first end of turn in a range of the text; `start` if there is none."""
    end_of_turn = "" if prompt_format.template is None else prompt_format.renderer.end
    found = text.find(end_of_turn, start, end)
    return found + len(end_of_turn) if found >= 0 else start


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
