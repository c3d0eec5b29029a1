"""Templates: what a row's columns become in a prompt or a completion."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pipelines.config.job import check_template
from pipelines.config.messages import did_you_mean
from pipelines.errors import DataError
from pipelines.storage.strict_json import NotText, infinity

SPLIT_COLUMN = "split"
MOST_NAMES = 20
"""Columns that a message names."""
_IN_BRACES = re.compile(r"(?<!\{)\{([^{}\n]+)\}(?!\})")


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order. `{{` and `}}` stand for literal braces."""
    return [name for _, name in _parsed(template) if name is not None]


@lru_cache(maxsize=256)
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Puts a row's columns into a template. Raises DataError for a missing column, an empty value, or one that is no text."""
    parts: list[str] = []
    for literal, name in _parsed(template):
        parts.append(literal)
        if name is not None:
            if name not in fields:
                raise DataError(
                    f"the template names the column {{{name}}}, {describe_columns(fields, name, braces=True)}"
                )
            parts.append(to_text(name, fields[name]))
    return "".join(parts)


def fill_nonempty(template: str, fields: Mapping[str, Any], what: str) -> str:
    """As `fill`; raises DataError as well where nothing but white space comes of it."""
    text = fill(template, fields)
    if not text.strip():
        raise DataError(f"the {what} is empty; give its column a value, or drop the row")
    return text


def describe_columns(fields: Mapping[str, Any], wanted: str, braces: bool = False, fixed: bool = False) -> str:
    """ "the row has: a, b; did you mean b?": the second half of a message on a column that is not there. `fixed`: the name is
    alfine's, so that it is the row's column that is to be renamed."""
    names = [name for name in fields if name != SPLIT_COLUMN]
    more = f", … ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    near = did_you_mean(wanted, (name for name in names if is_valid_placeholder(name)))
    advice = f"; did you mean {f'{{{near}}}' if braces else near}?" if near else ""
    if near and fixed:
        advice = f"; if {near} is meant, rename it"
    strange = next((name for name in names if not is_valid_placeholder(name)), None)
    if not near and strange is not None:
        advice = f"; {strange!r} cannot stand in braces, rename it"
    return f"the row has: {', '.join(names[:MOST_NAMES]) or 'no column'}{more}{advice}"


def is_valid_placeholder(column: str) -> bool:
    """Whether a template can name it: `{a:b}` or `{ a}` would mean something else, and what cannot be seen is not written."""
    try:
        check_template(f"{{{column}}}")
    except ValueError:
        return False
    return column.isprintable()


def to_text(name: str, value: Any) -> str:
    """A value as it stands in a prompt: a text as it is, a number or true and false as JSON writes them.

    Raises DataError for no value, and for what is none of these: a list or an object would be JSON with its brackets and
    quotes, which the model would learn to write.
    """
    if isinstance(value, float) and math.isinf(value):
        value = infinity("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, NotText):
        raise DataError(f"column {name} {value.why}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(
            f"column {name} has no value (null, or NaN, pandas' empty cell); give it a text, or drop the row"
        )
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(
                f"column {name} holds a NUL character, as UTF-16 and binary files do; take it out of the text"
            )
        return value
    if isinstance(value, list | dict):
        raise DataError(f"column {name} {_advice(name, value)}")
    return json.dumps(value)


def _advice(name: str, value: list[Any] | dict[str, Any]) -> str:
    if isinstance(value, dict):
        return "holds an object, not a text; write the part that is meant as a column of its own"
    if value and all(isinstance(one, dict) and {"content", "value"} & set(one) for one in value):
        text = "content" if "content" in value[0] else "value"
        return (
            f"holds a conversation (a list of messages), which is not read yet; write the user's message as one column and the "
            f"assistant's answer as another, each as text (jq: .{name}[0].{text})"
        )
    if all(isinstance(one, str) for one in value):
        return f'holds a list, not a text; join it (jq: .{name} | join("\\n")), or write one of its texts as a column of its own'
    return "holds a list, not a text; write the part that is meant as a column of its own"


def check_system_is_constant(system: str | None, columns: Iterable[str]) -> None:
    """Raises DataError where `system`, which is sent as it stands, names a column of the rows in braces."""
    if system is None or "{" not in system:
        return
    known = set(columns)
    for name in _IN_BRACES.findall(system):
        if name.strip() in known:
            raise DataError(
                f"system holds {{{name}}}, a column of the rows, but no column is put into system, which is the same for every "
                f"row; write {{{name.strip()}}} in prompt instead"
            )
