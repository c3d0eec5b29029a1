"""Configs and commands without the paths of this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from pipelines.report.formatting import one_line

PATH_KEYS = {"data", "base_model", "chat_template", "continue_from", "sample_prompts", "test", "validation", "file"}
"""Keys of a config whose values may be paths."""


def portable(value: Any, key: str = "") -> Any:
    """A config's value without paths of this machine: an absolute path becomes its last part."""
    if isinstance(value, dict):
        return {name: portable(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, key) for item in value]
    return _last_part(value) if isinstance(value, str) and _is_path(value, key) else value


def _is_path(text: str, key: str = "") -> bool:
    """Whether a text is an absolute path, or in the home folder. A prompt may begin with a slash too."""
    if "\n" in text or not text.startswith(("/", "~")) or len(text) > 4096:
        return False
    return key in PATH_KEYS or os.path.exists(os.path.expanduser(text))


def _last_part(text: str) -> str:
    return Path(text).name or "."


def portable_command(command: str) -> str:
    """A command without absolute paths."""
    try:
        words = shlex.split(command)
    except ValueError:
        return one_line(command, 500)
    return shlex.join(_portable_word(word) for word in words)


def _portable_word(word: str) -> str:
    if word.startswith(("/", "~")):
        return _last_part(word)
    key, equals, value = word.partition("=")
    return f"{key}={_last_part(value)}" if equals and _is_path(value, key.rpartition(".")[2]) else word
