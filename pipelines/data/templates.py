"""Templates: how the columns of a row are put into a prompt or a completion."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pipelines.config.messages import did_you_mean
from pipelines.config.templates import check_template
from pipelines.errors import DataError
from pipelines.storage.strict_json import NonTextValue, infinity

SPLIT_COLUMN = "split"
MAX_COLUMNS_LISTED = 20
_PLACEHOLDER = re.compile(r"(?<!\{)\{([^{}\n]+)\}(?!\})")


class MissingColumnError(DataError):
    """A template names a column that the row does not have."""


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order. `{{` and `}}` are literal braces."""
    return [name for _, name in _parse(template) if name is not None]


@lru_cache(maxsize=256)
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of literal text and the column that follows it, if any."""
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Puts a row's columns into a template.

    Raises MissingColumnError for a column that the row does not have, and DataError for a value that cannot be text.
    """
    parts: list[str] = []
    for literal, name in _parse(template):
        parts.append(literal)
        if name is not None:
            if name not in fields:
                described = describe_columns(fields, name, in_braces=True)
                raise MissingColumnError(f"the template names the column {{{name}}}, but {described}")
            parts.append(to_text(name, fields[name]))
    return "".join(parts)


def fill_nonempty(template: str, fields: Mapping[str, Any], kind: str) -> str:
    """Fills the template as `fill` does, and raises DataError if the result is blank. `kind` names it: "prompt" or
    "completion"."""
    text = fill(template, fields)
    if not text.strip():
        raise DataError(f"the {kind} is empty; fill in its column, or drop the row")
    return text


def describe_columns(fields: Mapping[str, Any], missing: str, in_braces: bool = False, is_fixed: bool = False) -> str:
    """The end of a message about a missing column: "the row has: a, b; did you mean b?".

    `in_braces`: the suggestion is for a template. `is_fixed`: alfine requires the name `missing`, so the advice is to
    rename the row's column.
    """
    names = [name for name in fields if name != SPLIT_COLUMN]
    rest = f", … ({len(names)} in all)" if len(names) > MAX_COLUMNS_LISTED else ""
    suggestion = did_you_mean(missing, (name for name in names if is_valid_placeholder(name)))
    invalid = next((name for name in names if not is_valid_placeholder(name)), None)
    advice = ""
    if suggestion and is_fixed:
        advice = f"; if {suggestion} is meant, rename it"
    elif suggestion:
        advice = f"; did you mean {f'{{{suggestion}}}' if in_braces else suggestion}?"
    elif invalid is not None:
        advice = f"; {invalid!r} cannot be used in braces, rename it"
    return f"the row has: {', '.join(names[:MAX_COLUMNS_LISTED]) or 'no column'}{rest}{advice}"


def is_valid_placeholder(column: str) -> bool:
    """Whether `{column}` in a template names this column. `{a:b}` and `{ a}` mean something else in a format string."""
    try:
        check_template(f"{{{column}}}")
    except ValueError:
        return False
    return column.isprintable()


def to_text(column: str, value: Any) -> str:
    """A value as text: a text unchanged, a number, true or false as in JSON.

    Raises DataError for a missing value, a list or an object: the model would learn JSON's brackets and quotes.
    """
    if isinstance(value, float) and math.isinf(value):
        value = infinity("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, NonTextValue):
        raise DataError(f"column {column} {value.reason}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(
            f"column {column} has no value (null, or NaN, as pandas writes empty cells); fill it in, or drop the row"
        )
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(f"column {column} contains a NUL character, as UTF-16 and binary files do; remove it")
        return value
    if isinstance(value, list | dict):
        raise DataError(f"column {column} {_describe_nested(column, value)}")
    return json.dumps(value)


def _describe_nested(column: str, value: list[Any] | dict[str, Any]) -> str:
    if isinstance(value, dict):
        return "holds an object, not a text; move the part you need into its own column"
    if value and all(isinstance(item, dict) and {"content", "value"} & set(item) for item in value):
        return f"holds a conversation (a list of messages); write messages: {column} instead of prompt and completion"
    if all(isinstance(item, str) for item in value):
        advice = f'join it (jq: .{column} | join("\\n")), or move one of its texts into its own column'
        return f"holds a list, not a text; {advice}"
    return "holds a list, not a text; move the part you need into its own column"


def fill_system(system: str, fields: Mapping[str, Any]) -> str:
    """The system turn of a row: `{column}` is replaced by the row's value. Other braces are text."""

    def value(match: re.Match[str]) -> str:
        name = match[1].strip()
        return to_text(name, fields[name]) if name in fields else match[0]

    return _PLACEHOLDER.sub(value, system) if "{" in system else system


def system_columns(system: str) -> list[str]:
    """The names in braces in a system turn. Those that a row does not have are text, see `fill_system`."""
    return [match[1].strip() for match in _PLACEHOLDER.finditer(system)]


REASONING_COLUMN = "reasoning"
"""The column that holds the thought before a completion, unless the task has a template for it."""


def fill_reasoning(
    template: str | bool | None, fields: Mapping[str, Any], named_columns: Iterable[str | None]
) -> str | None:
    """The thought before the completion of a row, None if the row has none.

    template: the task's template of the thought, in which a missing value counts as an empty text; False if thoughts
    are left out. Without one, or with True, the column `reasoning` is the thought if it holds a text and is not one of
    the `named_columns`, those that the task uses otherwise. Raises DataError as `fill` does.
    """
    if template is False:
        return None
    if template is None or template is True:
        value = fields.get(REASONING_COLUMN) if REASONING_COLUMN not in named_columns else None
        text = value if isinstance(value, str) else ""
    else:
        columns = template_columns(template)
        empty = {name: "" for name in columns if name in fields and _is_missing(fields[name])}
        text = fill(template, {**fields, **empty})
    return text.strip() or None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
