"""The settings of a chat template, as the config and the date of a run give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError


@dataclass(frozen=True)
class ChatTemplateSettings:
    """Which chat template renders prompts, and the variables that it gets besides the messages.

    Attributes:
        enabled: whether prompts use a chat template; None uses one if the model has one.
        source: the Jinja text of a template that replaces the model's own; None for the model's.
        kwargs: variables of the template, as JSON values.
        date: the date that the template sees as today's, in ISO 8601; None is the present day.
    """

    enabled: bool | None = None
    source: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None


DEFAULT_CHAT_TEMPLATE = ChatTemplateSettings()
"""The model's own chat template if it has one, with its default variables."""
PLAIN_TEXT = ChatTemplateSettings(enabled=False)
"""No chat template."""


def read_template_file(file: Path) -> str:
    """The Jinja text of a chat template. Raises ConfigError, without a location, for a file that is no template."""
    hint = "write true, false, or the path of a Jinja file"
    if not file.is_file():
        raise ConfigError(f"no such file: {str(file)!r}; {hint}")
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read ({error}); {hint}") from None
    if "{{" not in source and "{%" not in source:
        raise ConfigError(f"{str(file)!r} is not a Jinja template: it has neither {{{{ nor {{%; {hint}")
    return source
