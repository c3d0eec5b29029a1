"""Rendering of a tokenizer's chat template, with errors that say what to change in the config."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from pipelines.config.messages import shorten
from pipelines.errors import ConfigError, Problem

TEMPLATE = "this model's chat template"
DISABLE_HINT = "set pipeline.chat_template: false to write prompts without it"
OMIT_SYSTEM_HINT = "leave `system` out (write it into the task's prompt)"

Messages = list[dict[str, str]]
"""A conversation: dicts with `role` and `content`."""


class ChatTemplateError(ConfigError):
    """A chat template that cannot be rendered or loses text. `key` is what to change: `chat_template` or `system`."""

    def __init__(self, problems: str | Problem, key: str = "chat_template") -> None:
        super().__init__(problems)
        self.key = key


def to_messages(prompt: str, system: str | None, completion: str | None = None) -> Messages:
    """A user turn, after a system turn if there is one and before an assistant turn if there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return messages if completion is None else [*messages, {"role": "assistant", "content": completion}]


def render(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> str:
    """The text of a conversation in the tokenizer's chat template. Raises ChatTemplateError."""
    try:
        return _apply(tokenizer, messages, add_generation_prompt)
    except Exception as error:  # a template is a program and can raise anything
        diagnosis = _diagnose(tokenizer, messages, add_generation_prompt, error)
    raise diagnosis from None


def check_contains(text: str, part: str, description: str, key: str = "chat_template") -> None:
    """Raises ChatTemplateError if `part` is not in the rendered `text`.

    A template that expects messages of another form drops their content without an error.
    """
    if part.strip() not in text:
        advice = f"{OMIT_SYSTEM_HINT}, or {DISABLE_HINT}" if key == "system" else DISABLE_HINT
        raise ChatTemplateError(f"{TEMPLATE} drops {description}: its text is not in the result; {advice}", key)


def _apply(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _diagnose(tokenizer: Any, messages: Messages, add_generation_prompt: bool, error: Exception) -> ChatTemplateError:
    """The cause of a rendering error, with what to change."""
    details = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(templates)
        return ChatTemplateError(f"this model has several chat templates ({names}) and no default; {DISABLE_HINT}")
    if isinstance(error, TemplateSyntaxError):
        location = f"its line {error.lineno}: {details}"
        return ChatTemplateError(f"{TEMPLATE} is not valid Jinja ({location}); {DISABLE_HINT}")
    if messages[0]["role"] == "system" and _renders(tokenizer, messages[1:], add_generation_prompt):
        message = f"{TEMPLATE} does not support a system turn ({details}); {OMIT_SYSTEM_HINT}, or {DISABLE_HINT}"
        return ChatTemplateError(message, "system")
    if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
        return ChatTemplateError(f"{TEMPLATE} rejects a user turn and its answer ({details}); {DISABLE_HINT}")
    return ChatTemplateError(f"{TEMPLATE} fails ({type(error).__name__}: {details}); {DISABLE_HINT}")


def _renders(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> bool:
    try:
        _apply(tokenizer, messages, add_generation_prompt)
    except Exception:
        return False
    return True
