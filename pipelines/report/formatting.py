"""How the report writes numbers and texts, the same in every form."""

from __future__ import annotations

from pipelines.console.plain_text import count as count
from pipelines.console.plain_text import duration as duration
from pipelines.console.plain_text import printable as printable
from pipelines.scoring.unicode_text import cut

BASE_AND_TUNED = ("base", "tuned")
"""The two sides of a run; those of a comparison of two runs have the runs' names."""


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


def one_line(text: str, width: int) -> str:
    """The text on one line, cut with … where it takes more than `width` columns of a terminal."""
    return cut(" ".join(printable(text[: 20 * width]).split()), width)


def heading(side: str) -> str:
    """A side's name where a capital stands. Base and tuned are words; the name of a run is shown as it is."""
    return side.capitalize() if side in BASE_AND_TUNED else side


def joined(words: list[str]) -> str:
    """a, b and c"""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
