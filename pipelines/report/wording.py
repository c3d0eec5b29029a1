"""How the report writes numbers and texts, the same in every form."""

from __future__ import annotations

import re

from pipelines.unicode_text import cut

BASE_AND_TUNED = ("base", "tuned")
"""The two sides of a run; those of a comparison of two runs have the runs' names."""

# Control characters, bidirectional overrides and lone surrogates: they would move the text around them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def number(value: float, unit: str = "%") -> str:
    """91.3 on the 0…100 scale, 1.234 in nats."""
    return f"{value:.3f}" if unit == "nats/token" else f"{value:.1f}"


def score(value: float | None, unit: str, binary: bool) -> str:
    """A row's score: right or wrong where there is nothing between, else the number."""
    if value is None:
        return "not scored"
    if binary:
        return "right" if value else "wrong"
    return number(value, unit)


def signed(value: float, unit: str = "%") -> str:
    """+3.1 or −3.1, with a real minus; a change that rounds to nothing has no sign."""
    text = number(abs(value), unit)
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\u2212") + text


def interval(ci95: tuple[float, float], unit: str = "%") -> str:
    """The words for a confidence interval."""
    return f"{signed(ci95[0], unit)} to {signed(ci95[1], unit)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def unit_name(unit: str) -> str:
    """The unit of a change: that of a percentage is told in points, as is that of ROUGE or chrF."""
    return "points" if unit == "%" else unit


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


def printable(text: str) -> str:
    """Model text with what cannot be seen made visible: ␀ for NUL, ⟨U+202E⟩ for a bidi override."""

    def visible(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"

    return _INVISIBLE.sub(visible, text.replace("\r\n", "\n"))


def one_line(text: str, width: int) -> str:
    """The text on one line, cut with … where it takes more than `width` columns of a terminal."""
    return cut(" ".join(printable(text[: 20 * width]).split()), width)


def heading(side: str) -> str:
    """A side's name where a capital stands. Base and tuned are words; the name of a run is shown as it is."""
    return side.capitalize() if side in BASE_AND_TUNED else side


def joined(words: list[str]) -> str:
    """a, b and c"""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
