"""The form of a chat template: which messages it prints, and what it writes around and after an answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.data.chat_template import DISABLE_HINT, TEMPLATE, ChatTemplate, ChatTemplateError, check_contains
from pipelines.data.conversation import Message

PROMPT, ANSWER, SYSTEM = "alfineprompt", "alfineanswer", "alfinesystem"
"""Contents of messages whose positions in a rendered conversation show what the template writes around them."""
MAX_CONTROL_TOKEN = 64
"""The most characters of a control token that are searched around a position."""
_ARGUMENTS = {"alfineargument": "alfinevalue"}
_TOOL = "alfinetool"
_CALL = {"id": "alfinecall", "type": "function", "function": {"name": _TOOL, "arguments": _ARGUMENTS}}
"""A tool call, for the same purpose."""


@dataclass(frozen=True)
class CallForm:
    """The form in which a template takes tool calls.

    Attributes:
        text_arguments: arguments are JSON text, not an object.
        null_content: the content of a turn that is only calls is null, not an empty text.
    """

    text_arguments: bool = False
    null_content: bool = False

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        return [self._message(message) if message.get("tool_calls") else message for message in messages]

    def _message(self, message: Message) -> Message:
        content = message["content"] or (None if self.null_content else "")
        calls = [self._call(call) if self.text_arguments else call for call in message["tool_calls"]]
        return {**message, "content": content, "tool_calls": calls}

    def _call(self, call: Message) -> Message:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


_CALL_FORMS = (CallForm(), CallForm(text_arguments=True), CallForm(null_content=True), CallForm(True, True))


class TemplateForm:
    """What a chat template does with every conversation, found by rendering examples.

    Args:
        template: the chat template with its variables.
        control_tokens: the texts of the special and added tokens of the tokenizer.
        bos: the text of the token that begins every sequence, if there is one.
    """

    def __init__(self, template: ChatTemplate, control_tokens: Sequence[str], bos: str | None) -> None:
        self.template = template
        self.bos = bos
        longest_first = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._control_token = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def writes_parts(self) -> bool:
        """Whether the template drops contents that are texts and prints those that are lists of parts."""
        messages = [{"role": "user", "content": PROMPT}]
        if PROMPT in self.template.render(messages):
            return False
        with_parts = self._try(_with_parts(messages))
        if with_parts is None or PROMPT not in with_parts:
            check_contains("", PROMPT, "the prompt")
        return True

    @cached_property
    def merges_system(self) -> bool:
        """Whether the template refuses or drops a system turn, so that its text begins the first user turn."""
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
        self.template.render(self._in_form(turns))  # an error of its own is not that of the system turn
        text = self._try(self._in_form([{"role": "system", "content": SYSTEM}, *turns]))
        return text is None or SYSTEM not in text

    @cached_property
    def call_form(self) -> CallForm | None:
        """The form of tool calls in which the template writes them, and their arguments as JSON; None if it writes no
        calls, so that they would be lost."""
        calling = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        turns = [*self._in_form([{"role": "user", "content": PROMPT}]), calling]
        texts = {form: self._try(form.apply(turns)) for form in _CALL_FORMS}
        rendered = {form: text for form, text in texts.items() if text is not None}
        writing = [form for form, text in rendered.items() if _TOOL in text]
        if rendered and not writing:
            return None
        # A template that expects JSON text prints an object as Python does.
        as_json = [form for form in writing if str(_ARGUMENTS) not in rendered[form]]
        return next(iter((*as_json, *writing)), CallForm())

    @property
    def lists_tools(self) -> bool:
        """Whether the template reads the variable of the tools."""
        return "tools" in self.template.variable_names

    @cached_property
    def end(self) -> str:
        """What the template writes after an answer through the end of its turn; empty if it writes no end.

        Raises ChatTemplateError if it prints no answer, or ends it with the token that begins a sequence.
        """
        turns = self._in_form([{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}])
        text = self.template.render(turns)
        check_contains(text, ANSWER, "the assistant's answer")
        following = self._try([*turns, *self._in_form([{"role": "user", "content": PROMPT}])])
        between = "" if following is None else following.rpartition(ANSWER)[2].partition(PROMPT)[0]
        last = self._first_tokens(self._without_next_header(text.rpartition(ANSWER)[2], turns))
        middle = self._first_tokens(between)
        if not last:
            # Some templates end a turn with the token that begins the next one.
            end = "".join(middle[:2])
        else:
            # What the two texts have in common ends a turn. The rest ends a text, or begins the next turn.
            pairs = zip(last, middle, strict=False)
            common = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
            end = "".join(common) if len(common) > 1 else "".join(last[:2])
        if self.bos and end.endswith(self.bos) and self.bos != self.template.variables.get("eos_token"):
            raise ChatTemplateError(
                f"{TEMPLATE} writes no end of an answer: {self.bos}, which begins a text, follows it; {DISABLE_HINT}"
            )
        return end

    def _without_next_header(self, text: str, turns: Sequence[Message]) -> str:
        """`text` without the beginning of another answer, which some templates always write."""
        prompt = self._try(turns[:1], add_generation_prompt=True)
        header = "" if prompt is None else prompt.rpartition("?")[2]
        return text.removesuffix(header) if header.strip() and text != header else text

    def _first_tokens(self, text: str) -> list[str]:
        """The text before the first control token, that token, and those that directly follow it. Empty if there is no
        control token."""
        parts: list[str] = []
        position = 0
        for match in self._control_token.finditer(text):
            if parts and match.start() != position:
                break
            parts += [match[0]] if parts else [text[: match.start()], match[0]]
            position = match.end()
        return parts

    def _through_last_token(self, text: str) -> str:
        matches = list(self._control_token.finditer(text))
        return text[: matches[-1].end()] if matches else ""

    @cached_property
    def _stop_token(self) -> str:
        """The last control token of the end of an answer; empty if the template writes no end."""
        tokens = self._control_token.findall(self.end)
        return tokens[-1] if tokens else ""

    def _whole_token(self, text: str, position: int) -> int:
        """`position`, or the start of the word or control token that it is inside of."""
        for match in self._control_token.finditer(text, max(0, position - MAX_CONTROL_TOKEN)):
            if match.start() < position < match.end():
                return match.start()
            if match.end() == position:
                return position
            if match.start() >= position:
                break
        word = re.search(r"[^\s>]*\Z", text[:position])
        return word.start() if word and position < len(text) and not text[position].isspace() else position

    def _ends_with_token(self, text: str) -> bool:
        return any(match.end() == len(text) for match in self._control_token.finditer(text))

    @cached_property
    def skeleton(self) -> str:
        """What the template writes around the contents of a system, a user and an assistant turn, and in a prompt."""
        turns: list[Message] = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
        system: list[Message] = [] if self.merges_system else [{"role": "system", "content": SYSTEM}]
        conversation = self.template.render(self._in_form([*system, *turns]))
        return conversation + (self._try(self._in_form([*system, turns[0]]), add_generation_prompt=True) or "")

    def _in_form(self, messages: Sequence[Message]) -> list[Message]:
        # The property renders a conversation itself, so it must not be needed there.
        return _with_parts(messages) if self.writes_parts else list(messages)

    def _try(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str | None:
        """The rendering, None if the template refuses the messages."""
        try:
            return self.template.render(messages, add_generation_prompt=add_generation_prompt)
        except ChatTemplateError:
            return None


def _with_parts(messages: Sequence[Message]) -> list[Message]:
    """The messages with contents as lists of parts, as multimodal templates expect them."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
