"""The sentences about a key in a YAML file: what it is called, what stands there, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]

TYPE_WORDS = {
    "integer": "a whole number", "number": "a number", "boolean": "true or false", "text": "text",
    "list": "a list", "mapping": "a section of keys", "null": "null",
}  # fmt: skip


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


def wrong_type(types: list[str], value: Any, path: KeyPath, written: str | None) -> str:
    """`trainer.learning_rate: expected a number, found the text 'fast'`, and a word on the quotes."""
    expected = " or ".join(TYPE_WORDS[kind] for kind in types if kind != "null" or len(types) == 1)
    message = f"{dotted(path)}: expected {expected}, found {value_words(value, written)}"
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
    return ("integer" in types or "number" in types) and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", text) is not None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, if any is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower()[:100], by_lower, n=1)
    if not near and len(word) > 3:
        near = [name for name in by_lower if name.startswith(word.lower())]  # warmup: warmup_fraction, warmup_…
    return " or ".join(by_lower[name] for name in near) or None


def unknown_key(path: KeyPath, known: Iterable[str], homes: Mapping[str, str], usable: Iterable[str] | None = None) -> str:
    """The sentence on a key that its section does not know; `homes` tells where such a key belongs. `usable`: the known ones
    that are not refused."""
    name = str(path[-1])
    known = list(known)
    if name in homes:
        advice = f"it belongs in {homes[name]}"
    elif near := did_you_mean(name, known):
        advice = f"did you mean {near}?"
    elif near := did_you_mean(name, homes):
        advice = f"did you mean {near}, which belongs in {homes[near]}?"
    else:
        advice = f"known here: {', '.join(known if usable is None else usable)}"
    return f"{dotted(path)}: unknown key; {advice}"
