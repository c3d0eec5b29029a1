"""Numbers, units and text, written in the same way in every form of the report."""

from __future__ import annotations

from pipelines.console.plain_text import count as count
from pipelines.console.plain_text import duration as duration
from pipelines.console.plain_text import printable as printable
from pipelines.scoring.metric import Unit
from pipelines.scoring.unicode_text import truncate

BASE_AND_TUNED = ("base", "tuned")
"""The names of the two models of a run. A comparison of two models has names of its own."""

NOTHING = "(nothing)"
"""What stands for an empty text."""


def number(value: float, unit: Unit = Unit.PERCENT) -> str:
    """The value with the decimal places of its unit, such as 91.3 or 1.234."""
    return f"{value:.{unit.decimals}f}"


def score(value: float | None, unit: Unit, binary: bool) -> str:
    """The score of one row: a number, or right or wrong for a binary metric."""
    if value is None:
        return "not scored"
    if binary:
        return "right" if value else "wrong"
    return number(value, unit)


def signed(value: float, unit: Unit = Unit.PERCENT) -> str:
    """The value with its sign, such as +3.1 or −3.1. A value that rounds to 0 has no sign."""
    text = number(abs(value), unit)
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\u2212") + text


def interval(ci95: tuple[float, float], unit: Unit = Unit.PERCENT) -> str:
    """A confidence interval, such as −1.0 to +2.0."""
    return f"{signed(ci95[0], unit)} to {signed(ci95[1], unit)}"


def p_value(p: float) -> str:
    """A p-value with three decimal places."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def change_unit(unit: Unit) -> str:
    """The unit of a change: percentages differ by points."""
    return unit.of_change


def with_unit(title: str, unit: Unit) -> str:
    """The title of a measure, with (%) for a percentage."""
    return f"{title} (%)" if unit is Unit.PERCENT else title


def one_line(text: str, width: int) -> str:
    """The text on one line, truncated with … to `width` columns of a terminal."""
    return truncate(" ".join(printable(text[: 20 * width]).split()), width)


def heading(model: str) -> str:
    """The name of a model in a heading: Base or Tuned with a capital, other names unchanged."""
    return model.capitalize() if model in BASE_AND_TUNED else model


def joined(words: list[str]) -> str:
    """A list in words, such as "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def no_answer(reasoning: str | None, reasoning_cut: bool) -> str:
    """What stands for an empty answer after this reasoning."""
    if reasoning_cut:
        return "(no answer: cut inside the reasoning)"
    return "(no answer after the reasoning)" if reasoning else NOTHING
