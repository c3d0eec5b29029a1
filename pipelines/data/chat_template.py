"""Rendering of a chat template, with errors that say what to change in the config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from pipelines.config.chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplateSettings
from pipelines.config.messages import shorten
from pipelines.data.conversation import Message
from pipelines.errors import ConfigError, Problem
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from transformers.utils import chat_template_utils
else:  # 0.9 s that plain prompts do not need
    chat_template_utils = lazy_import("transformers.utils.chat_template_utils")

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
TEMPLATE = "this model's chat template"
DISABLE_HINT = "set pipeline.chat_template: false to write prompts without it"
OMIT_SYSTEM_HINT = "leave `system` out (write it into the task's prompt)"


class ChatTemplateError(ConfigError):
    """A chat template that cannot be rendered or loses text. `key` is what to change: `chat_template` or `system`."""

    def __init__(self, problems: str | Problem, key: str = "chat_template") -> None:
        super().__init__(problems)
        self.key = key


class ChatTemplate:
    """A chat template with everything that it sees besides the messages.

    Args:
        tokenizer: has the attributes `chat_template` (a text, or texts by name) and `special_tokens_map`.
        settings: the template that replaces the tokenizer's, if any, its variables and the date.
    """

    def __init__(self, tokenizer: Any, settings: ChatTemplateSettings = DEFAULT_CHAT_TEMPLATE) -> None:
        self.sources: str | Mapping[str, str] = settings.source or tokenizer.chat_template
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self.variables = {**self._special_tokens, **settings.kwargs}
        self.date = None if settings.date is None else date.fromisoformat(settings.date)

    def source(self, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The Jinja text that renders conversations with these tools. Raises ChatTemplateError.

        Of several templates it is that of transformers: `tool_use` for conversations with tools, else `default`.
        """
        if isinstance(self.sources, str):
            return self.sources
        if tools and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            names = ", ".join(self.sources)
            raise ChatTemplateError(f"this model has several chat templates ({names}) and no default; {DISABLE_HINT}")
        return self.sources["default"]

    def replaced(self, source: str) -> ChatTemplate:
        """Another template for the same tokenizer and date, without the variables of this one."""
        template = copy(self)
        template.sources, template.variables = source, self._special_tokens
        return template

    @property
    def inputs(self) -> list[Any]:
        """What renderings depend on besides the conversation, as plain data: templates, variables and, if a template
        reads it, the date."""
        texts = [self.sources] if isinstance(self.sources, str) else list(self.sources.values())
        reads_date = any("strftime_now" in text for text in texts)
        return [self.sources, self.variables, str(self.date or date.today()) if reads_date else None]

    @property
    def has_generation_tags(self) -> bool:
        """Whether the template marks the assistant's text with `{% generation %}`."""
        texts = [self.sources] if isinstance(self.sources, str) else list(self.sources.values())
        return all(_GENERATION_TAG.search(text) for text in texts)

    @property
    def variable_names(self) -> set[str]:
        """The names of the variables that the template reads besides those it defines itself."""
        texts = [self.sources] if isinstance(self.sources, str) else list(self.sources.values())
        return {str(name) for text in texts for name in chat_template_utils._get_template_variables(text)}

    def generation_spans(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[tuple[int, int]]:
        """The ranges of characters inside the template's `{% generation %}` tags. The template must render."""
        compiled = chat_template_utils._compile_jinja_template(self.source(tools))
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        with compiled.environment.activate_tracker(blocks, spans):
            given = tools or ([] if self.needs_tools else None)
            for block in compiled.generate(**self._inputs(messages, False, given, kwargs)):
                blocks.append(block)
        return spans

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. Raises ChatTemplateError.

        A template that needs a list of tools gets an empty one for a conversation without tools.
        """
        tools = tools or None
        try:
            return self._apply(messages, add_generation_prompt, tools, kwargs)
        except ChatTemplateError:
            raise
        except Exception as error:  # a template is a program and can raise anything
            if tools is None and self._renders(messages, add_generation_prompt, [], kwargs):
                return self._apply(messages, add_generation_prompt, [], kwargs)
            diagnosis = self._diagnose(messages, add_generation_prompt, tools, kwargs, error)
        raise diagnosis from None

    @property
    def needs_tools(self) -> bool:
        """Whether the template only renders conversations with a list of tools, which may be empty."""
        turns = [{"role": "user", "content": "?"}]
        return not self._renders(turns, True, None, None) and self._renders(turns, True, [], None)

    def _apply(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> str:
        # The template is compiled by transformers, and rendered here: its own function would replace `strftime_now`,
        # which must not depend on the day, by a placeholder.
        compiled = chat_template_utils._compile_jinja_template(self.source(tools))
        return str(compiled.render(**self._inputs(messages, add_generation_prompt, tools, kwargs)))

    def _inputs(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The variables of a rendering."""
        return {
            "strftime_now": self._strftime_now,
            "documents": None,
            **self.variables,
            **(kwargs or {}),
            "messages": [_normalized(message) for message in messages],
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }

    def _strftime_now(self, pattern: str) -> str:
        now = datetime.now() if self.date is None else datetime.combine(self.date, datetime.min.time())
        return now.strftime(pattern)

    def _diagnose(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
        error: Exception,
    ) -> ChatTemplateError:
        """The cause of a rendering error, with what to change."""
        details = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
        if isinstance(error, TemplateSyntaxError):
            location = f"its line {error.lineno}: {details}"
            return ChatTemplateError(f"{TEMPLATE} is not valid Jinja ({location}); {DISABLE_HINT}")
        if messages[0]["role"] == "system" and self._renders(messages[1:], add_generation_prompt, tools, kwargs):
            message = f"{TEMPLATE} does not support a system turn ({details}); {OMIT_SYSTEM_HINT}, or {DISABLE_HINT}"
            return ChatTemplateError(message, "system")
        if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
            has_calls = any("tool_calls" in message or message["role"] == "tool" for message in messages)
            rejected = "a conversation with tool calls" if has_calls else "a user turn and its answer"
            return ChatTemplateError(f"{TEMPLATE} rejects {rejected} ({details}); {DISABLE_HINT}")
        return ChatTemplateError(f"{TEMPLATE} fails ({type(error).__name__}: {details}); {DISABLE_HINT}")

    def _renders(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> bool:
        try:
            self._apply(messages, add_generation_prompt, tools, kwargs)
        except Exception:
            return False
        return True


def lost_calls() -> ChatTemplateError:
    return ChatTemplateError(
        f"{TEMPLATE} does not write tool calls, so they would be lost; use a model whose template has tools, "
        "write pipeline.chat_template: FILE, or drop such rows"
    )


def check_calls(text: str, message: Message) -> None:
    """Raises ChatTemplateError if a call of a message is not in its rendering: the turn would be trained as empty."""
    for call in message.get("tool_calls") or ():
        if call["function"]["name"] not in text:
            raise lost_calls()


def check_contains(text: str, part: str, description: str, key: str = "chat_template") -> None:
    """Raises ChatTemplateError if `part` is not in the rendered `text`.

    A template that expects messages of another form drops their content without an error.
    """
    if part.strip() not in text:
        advice = f"{OMIT_SYSTEM_HINT}, or {DISABLE_HINT}" if key == "system" else DISABLE_HINT
        raise ChatTemplateError(f"{TEMPLATE} drops {description}: its text is not in the result; {advice}", key)


def _normalized(message: Message) -> Message:
    """The message as transformers passes it to a template: without keys whose value is None, and with the reasoning
    also under the names that the templates of gpt-oss and, before a tool call, of Command read.

    The content stays: some templates test whether it is null.
    """
    normalized = {key: value for key, value in message.items() if value is not None or key == "content"}
    if "reasoning_content" in normalized:
        normalized.setdefault("thinking", normalized["reasoning_content"])
        if normalized.get("tool_calls"):
            normalized.setdefault("tool_plan", normalized["reasoning_content"])
    return normalized
