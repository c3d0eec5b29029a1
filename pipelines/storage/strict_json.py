"""JSON as its standard has it (RFC 8259): what is read has one meaning, and any program can read what is written.

Python's own module reads and writes more than that: NaN, infinity, halves of characters, a key twice of which the last wins.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MOST_DEPTH = 100
"""Levels of lists and objects within each other."""
_HALF = re.compile("[\ud800-\udfff]")


class NotStrict(ValueError):
    """JSON by its grammar that has no one meaning, or none that can be held; the text says why and what to write."""


@dataclass(frozen=True)
class NotText:
    """A value of a row that no prompt can hold (bytes, infinity): `why` says what to write instead. No trouble where no
    template uses it: in JSON it is the text `written`."""

    written: str
    why: str


def parse(text: str) -> Any:
    """The value of a JSON text. NaN, as pandas writes an empty cell, is None; infinity is a NotText.

    Raises json.JSONDecodeError for what is not JSON, NotStrict for a key twice, half a surrogate pair, a number that is
    too large, and lists and objects nested deeper than MOST_DEPTH.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)
    except (json.JSONDecodeError, NotStrict):
        raise
    except RecursionError:
        raise NotStrict(_TOO_DEEP) from None
    except ValueError:  # Python's bound on the digits of a whole number
        raise NotStrict("holds a whole number of more than 4,300 digits; write it as text, in quotes") from None
    # Both walks are for the few texts that could need them.
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise NotStrict(_TOO_DEEP)
    if "\\u" in text and re.search(r"\\u[dD][89a-fA-F]", text) and (half := _half(value)):
        raise NotStrict(
            f"holds {ascii(half)[1:-1]}, half of a character, as where a text was cut inside an emoji; "
            f"write the whole character, or drop the row"
        )
    return value


_TOO_DEEP = f"its lists and objects are nested too deeply, more than {MOST_DEPTH} levels"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotStrict(f"the name {twice!r} stands twice in one object; keep the value that is meant")
    return found


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        shown = text if len(text) <= 30 else text[:29] + "…"
        raise NotStrict(f"the number {shown} is too large to be held; write it as text, in quotes")
    return value


def _constant(text: str) -> NotText | None:
    return None if text == "NaN" else infinity(text)


def infinity(written: str) -> NotText:
    """The value `Infinity` or `-Infinity` of a row."""
    return NotText(written, f"is {written}, which no text stands for; give it a number or a text, or drop the row")


def _depth(value: Any) -> int:
    """Levels, found without recursion and not far beyond MOST_DEPTH."""
    level, depth = [value], 0
    while depth <= MOST_DEPTH and (level := [one for one in level if isinstance(one, list | dict)]):
        depth += 1
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    return depth


def _half(value: Any) -> str | None:
    """The first half of a surrogate pair in any text or name."""
    if isinstance(value, str):
        found = _HALF.search(value)
        return found[0] if found else None
    children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((half for child in children if (half := _half(child))), None)


def dump(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON that every reader takes. A number that is not finite becomes the text NaN, Infinity or -Infinity, which
    `float` reads; a NotText becomes its text. `ascii_only` escapes all other letters."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=_default)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=_default)
    # Half a character is written as its escape, since UTF-8 has no bytes for it.
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _default(value: Any) -> str:
    if isinstance(value, NotText):
        return value.written
    raise TypeError(f"{type(value).__name__} is no JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, list | tuple) else value
