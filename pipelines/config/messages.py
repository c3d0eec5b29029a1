"""Phrases for messages about config keys: names, values, expected types and suggestions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead to a value, from the top of the file."""

EXPECTED_TEXTS = {
    "base_model": "a model: smollm2-135m-instruct, a hub id (owner/name) or a folder",
    "data": "a file, as in data/reviews.jsonl, or {train: a.jsonl, test: b.jsonl}",
    "metric": "a metric, as in exact_match or rouge",
}
"""Descriptions of the texts that keys expect."""

TYPE_NAMES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "text",
    "list": "a list",
    "mapping": "a section of keys",
    "null": "null",
}


def dotted(path: Iterable[str | int]) -> str:
    """A key as in `trainer.optimizer.betas[0]`, with escapes for characters that are not printable."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" for part in path)
    return text.removeprefix(".") or "the file"


def shorten(text: str, width: int = 60) -> str:
    """One printable line of at most `width` characters."""
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= width else text[: width - 1] + "…"


def describe(value: Any, raw_text: str | None) -> str:
    """A value in words: `the text 'fast'`, `yes, which YAML reads as true`. `raw_text`: as it is written."""
    match value:
        case None:
            return "null" if raw_text else "nothing"
        case bool():
            plain = "true" if value else "false"
            return plain if raw_text in (None, plain) else f"{raw_text}, which YAML reads as {plain}"
        case str():
            return f"the text '{shorten(value)}'"
        case list():
            return "a list"
        case Mapping():
            return f"a section with the keys {shorten(', '.join(map(str, value)))}" if value else "an empty section"
        case _:
            return shorten(raw_text or str(value))


def format_number(value: float) -> str:
    """A number as it would be typed: 4294967296, 0.5."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def wrong_type(types: list[str], value: Any, path: KeyPath, raw_text: str | None) -> str:
    """The message on a value of the wrong type: `trainer.epochs: expected a number, found the text 'few'`.

    types: the accepted types, keys of TYPE_NAMES.
    """
    expected = " or ".join(TYPE_NAMES[kind] for kind in types if kind != "null" or len(types) == 1)
    if types == ["mapping"] and value is None:
        return f"{dotted(path)} is empty; indent its keys below it, or remove the line"
    if types == ["mapping"] and isinstance(value, list):
        return f"{dotted(path)}: expected keys, found a list; write `name:` instead of each dash"
    if types == ["text"] and path[-1] in EXPECTED_TEXTS:
        expected = EXPECTED_TEXTS[str(path[-1])]
        return f"{dotted(path)}: expected {expected}; found {describe(value, raw_text)}"
    message = f"{dotted(path)}: expected {expected}, found {describe(value, raw_text)}"
    hint = _type_hint(types, value, raw_text)
    return f"{message}; {hint}" if hint else message


def _type_hint(types: list[str], value: Any, raw_text: str | None) -> str | None:
    """Advice on what to write instead, if the intention is clear."""
    if "null" in types and _means_none(value):
        return "write null for none"
    if "text" in types and raw_text:
        return f'put it in quotes: "{shorten(raw_text)}"'
    if "text" in types and isinstance(value, Mapping) and len(value) == 1 and None in value.values():
        return f'put a text that starts with {{ in quotes: "{{{shorten(next(iter(value)))}}}"'
    if isinstance(value, str) and _is_quoted_value(value, types):
        return "remove the quotes"
    return None


def _means_none(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value.lower() in ("none", "no", "off", "false"))


def _is_quoted_value(text: str, types: list[str]) -> bool:
    if "boolean" in types and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return True
    number = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    return ("integer" in types or "number" in types) and re.fullmatch(number, text) is not None


def closest_names(word: str, known: Iterable[str], cutoff: float | None = None) -> list[str]:
    """The known name that is most similar to `word`, or the names that start with it, or an empty list.

    cutoff: the minimum similarity, from 0 to 1.
    """
    by_lower = {name.lower(): name for name in known}
    cutoff = cutoff or (0.65 if len(word) > 3 else 0.7)
    matches = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=cutoff)
    if not matches:
        matches = [name for name in by_lower if sorted(name) == sorted(word.lower())]  # ecw: ewc
    if not matches and len(word) > 3:
        matches = [name for name in by_lower if name.startswith(word.lower())]  # warmup: warmup_fraction, warmup_…
    return [by_lower[name] for name in matches]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The closest known names as `a or b`, or None."""
    return " or ".join(closest_names(word, known)) or None
