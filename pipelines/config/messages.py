"""The sentences about a key in a YAML file: what it is called, what stands there, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]

EXPECTED_NAMES = {
    "base_model": "a model: smollm2-135m-instruct, a hub id (owner/name) or a folder",
    "data": "a file, as in data/reviews.jsonl, or {train: a.jsonl, test: b.jsonl}",
    "metric": "a metric, as in label or rouge",
}
"""What a text at these keys names."""

TYPE_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "text",
    "list": "a list",
    "mapping": "a section of keys",
    "null": "null",
}


def dotted(path: Iterable[str | int]) -> str:
    """`trainer.optimizer.betas[0]`; what cannot be printed is written as an escape."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" for part in path)
    return text.removeprefix(".") or "the file"


def shorten(text: str, width: int = 60) -> str:
    """One printable line of at most `width` characters."""
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= width else text[: width - 1] + "…"


def value_words(value: Any, written: str | None) -> str:
    """What stands there: `the text 'fast'`, `yes, which YAML reads as true`. `written`: as it was typed."""
    match value:
        case None:
            return "null" if written else "nothing"
        case bool():
            plain = "true" if value else "false"
            return plain if written in (None, plain) else f"{written}, which YAML reads as {plain}"
        case str():
            return f"the text '{shorten(value)}'"
        case list():
            return "a list"
        case Mapping():
            return f"a section with the keys {shorten(', '.join(map(str, value)))}" if value else "an empty section"
        case _:
            return shorten(written or str(value))


def number(value: float) -> str:
    """As it would be typed: 4294967296, 0.5."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def wrong_type(types: list[str], value: Any, path: KeyPath, written: str | None) -> str:
    """`trainer.learning_rate: expected a number, found the text 'fast'`, and a word on the quotes."""
    expected = " or ".join(TYPE_WORDS[kind] for kind in types if kind != "null" or len(types) == 1)
    found = value_words(value, written)
    if types == ["mapping"] and value is None:
        return f"{dotted(path)} is empty; indent its keys beneath it, or take the line out"
    if types == ["mapping"] and isinstance(value, list):
        return f"{dotted(path)}: expected keys, found a list; write `name:` in place of each dash"
    if types == ["text"] and path[-1] in EXPECTED_NAMES:
        return f"{dotted(path)}: expected {EXPECTED_NAMES[str(path[-1])]}; found {found}"
    message = f"{dotted(path)}: expected {expected}, found {found}"
    if "null" in types and (
        value is False or (isinstance(value, str) and value.lower() in ("none", "no", "off", "false"))
    ):
        return f"{message}; write null where there is to be none"
    if "text" in types and written:
        return f'{message}; put it in quotes: "{shorten(written)}"'
    if "text" in types and isinstance(value, Mapping) and len(value) == 1 and None in value.values():
        return f'{message}; put a text that starts with {{ in quotes: "{{{shorten(next(iter(value)))}}}"'
    if isinstance(value, str) and _reads_as(value, types):
        return f"{message}; leave out the quotes"
    return message


def _reads_as(text: str, types: list[str]) -> bool:
    if "boolean" in types and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return True
    number = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    return ("integer" in types or "number" in types) and re.fullmatch(number, text) is not None


def near_names(word: str, known: Iterable[str], cutoff: float | None = None) -> list[str]:
    """The known words nearest to `word`: one as a rule, several where it is the beginning of several, none where none is near."""
    by_lower = {name.lower(): name for name in known}
    least = cutoff or (0.65 if len(word) > 3 else 0.7)
    near = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=least)
    if not near:
        near = [name for name in by_lower if sorted(name) == sorted(word.lower())]  # ecw: ewc
    if not near and len(word) > 3:
        near = [name for name in by_lower if name.startswith(word.lower())]  # warmup: warmup_fraction, warmup_…
    return [by_lower[name] for name in near]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known words nearest to `word` as they are printed (`a or b`), None where none is near."""
    return " or ".join(near_names(word, known)) or None
