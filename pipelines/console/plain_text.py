"""Text for people on any stream: visible control characters, durations and rates in words, replacements of characters
that a terminal's encoding lacks."""

from __future__ import annotations

import codecs
import re
from typing import Any

# Control characters, bidirectional overrides and unpaired surrogates: they would move the text around them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

ASCII_REPLACEMENTS = {
    "…": "...",
    "−": "-",
    "–": "-",
    "—": "-",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "×": "x",
    "·": ".",
    "•": "*",
    "“": '"',
    "”": '"',
    "„": '"',
    "‘": "'",
    "’": "'",
    "≈": "~",
    "≤": "<=",
    "≥": ">=",
    "±": "+/-",
    "‖": "||",
    "Δ": "delta ",
    "✓": "+",
    "✗": "x",
    "⏎": "\\n",
    "▁": "_",
    "█": "#",
    "⟨": "<",
    "⟩": ">",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    **{chr(0x2400 + code): f"^{chr(0x40 + code)}" for code in range(0x20)},
}
"""Replacements of characters that an encoding lacks. Any other is written as its code, such as \\u4e2d."""

ERROR_HANDLER = "alfine.readable"
"""The name of ASCII_REPLACEMENTS as an error handler of Python's codecs."""


def printable(text: str) -> str:
    """Text of a model or a user with visible control characters: ␀ for NUL, ⟨U+202E⟩ for a bidirectional override."""

    def visible(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"

    return _INVISIBLE.sub(visible, text.replace("\r\n", "\n"))


def count(number: int, noun: str) -> str:
    """A count with its noun, such as `1 row`, `2 rows`, `1,200 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A duration, such as `0.4 s`, `12 s`, `5 min 3 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def rate(per_second: float) -> str:
    """A rate, such as `3.2/s`, `12.0/min`, `4.5/h`: in the unit that gives 1 or more."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def replace_unencodable(stream: Any) -> None:
    """Makes a text stream, or None, replace characters that its encoding lacks; by default it raises an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ERROR_HANDLER)


def encodes_unicode(stream: Any) -> bool:
    """Whether the encoding of `stream` has every character."""
    return str(getattr(stream, "encoding", None) or "utf-8").lower().startswith(("utf", "u8"))


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    replaced = (
        ASCII_REPLACEMENTS.get(character) or character.encode("ascii", "backslashreplace").decode()
        for character in characters
    )
    return "".join(replaced), error.end


codecs.register_error(ERROR_HANDLER, _replace)
