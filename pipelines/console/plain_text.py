"""Text for people, whatever it is written to: control characters made visible, times in words, a readable replacement for each
character that a terminal's encoding has not."""

from __future__ import annotations

import codecs
import re
from typing import Any

# Control characters, bidirectional overrides and lone surrogates: they would move the text around them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_READABLE = {
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
"""What stands for a character where the encoding has none; any other is written as its code, such as \\u4e2d."""

ERRORS = "alfine.readable"
"""The name of `_READABLE` as an error handler of Python's codecs."""


def printable(text: str) -> str:
    """Model text with what cannot be seen made visible: ␀ for NUL, ⟨U+202E⟩ for a bidi override."""

    def visible(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"

    return _INVISIBLE.sub(visible, text.replace("\r\n", "\n"))


def count(n: int, noun: str) -> str:
    """1 row, 2 rows, 1,200 rows."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 5 min 3 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def rate(per_second: float) -> str:
    """3.2/s, 12.0/min, 4.5/h: never 0.0 for what moves."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def make_readable(stream: Any) -> None:
    """What `stream` (a text stream, or None where it is closed) cannot encode is replaced, instead of ending the program."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ERRORS)


def speaks_unicode(stream: Any) -> bool:
    """Whether every character can be written to `stream` as it is."""
    return str(getattr(stream, "encoding", None) or "utf-8").lower().startswith(("utf", "u8"))


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_READABLE.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters), error.end


codecs.register_error(ERRORS, _readable)
