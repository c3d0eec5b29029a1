"""Strict JSON (RFC 8259): each text has one meaning, and every program can read the output.

Python's own module also reads and writes NaN, infinity, unpaired surrogates and objects with a repeated key.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

MAX_DEPTH = 100
"""Levels of nested arrays and objects."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class StrictJsonError(ValueError):
    """Valid JSON grammar with an ambiguous or unrepresentable value. The message has the reason and the remedy."""


@dataclass(frozen=True)
class NonTextValue:
    """A value of a row that cannot be put into a prompt, such as bytes or infinity.

    It is an error only if a template uses it; in JSON it is the string `text`.
    """

    text: str
    reason: str
    """The rest of an error message: why no prompt can contain the value, and what to write instead."""


def parse(text: str) -> Any:
    """The value of a JSON text. NaN, which pandas writes for an empty cell, is None; infinity is a NonTextValue.

    Raises json.JSONDecodeError for invalid JSON, StrictJsonError for a repeated key, an unpaired surrogate, a number
    out of range, and more than MAX_DEPTH levels.
    """
    try:
        if text.startswith("\ufeff"):
            raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
        value = _decoder().decode(text)
    except (json.JSONDecodeError, StrictJsonError):
        raise
    except RecursionError:
        raise StrictJsonError(TOO_DEEP) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise StrictJsonError("has an integer of more than 4,300 digits; write it as text, in quotes") from None
    # Two cheap tests on the text, so that only few values are searched.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise StrictJsonError(TOO_DEEP)
    if "\\u" in text and re.search(r"\\u[dD][89a-fA-F]", text) and (surrogate := _find_surrogate(value)):
        raise StrictJsonError(
            f"contains an unpaired surrogate, {ascii(surrogate)[1:-1]}, as if a text was cut inside an emoji; "
            f"write the complete character, or drop the row"
        )
    return value


@cache
def _decoder() -> json.JSONDecoder:
    """The decoder of all texts: `json.loads` would make one for each, which takes a third of its time."""
    return json.JSONDecoder(object_pairs_hook=_parse_object, parse_float=_parse_float, parse_constant=_parse_constant)


TOO_DEEP = f"its arrays and objects are nested too deeply, more than {MAX_DEPTH} levels"


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise StrictJsonError(f"has the key {repeated!r} twice in one object; keep one of them")
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        shown = text if len(text) <= 30 else text[:29] + "…"
        raise StrictJsonError(f"the number {shown} is out of range; write it as text, in quotes")
    return value


def _parse_constant(text: str) -> NonTextValue | None:
    return None if text == "NaN" else infinity(text)


def infinity(text: str) -> NonTextValue:
    """The value `Infinity` or `-Infinity` of a row."""
    return NonTextValue(text, f"is {text}, which has no text form; write a number or a text, or drop the row")


def _depth(value: Any) -> int:
    """The levels of nesting, counted without recursion and only to MAX_DEPTH + 1."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH and (level := [item for item in level if isinstance(item, list | dict)]):
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _find_surrogate(value: Any) -> str | None:
    """The first surrogate in any string or key."""
    if isinstance(value, str):
        match = _SURROGATE.search(value)
        return match[0] if match else None
    children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((surrogate for child in children if (surrogate := _find_surrogate(child))), None)


def dump(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """A JSON text. NaN and infinity become the strings NaN, Infinity and -Infinity, which `float` reads; a NonTextValue
    becomes its text. `ascii_only` escapes all other characters."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=_to_json)
    except ValueError:
        text = json.dumps(
            _replace_nonfinite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=_to_json
        )
    # UTF-8 cannot encode a surrogate, so it is written as an escape.
    return _SURROGATE.sub(lambda surrogate: f"\\u{ord(surrogate[0]):04x}", text)


def _to_json(value: Any) -> str:
    if isinstance(value, NonTextValue):
        return value.text
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _replace_nonfinite(child) for key, child in value.items()}
    return [_replace_nonfinite(child) for child in value] if isinstance(value, list | tuple) else value
