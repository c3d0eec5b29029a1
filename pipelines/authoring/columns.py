"""What the columns of a file hold: types, missing values, distinct values, lengths."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.authoring.sample import Sample
from pipelines.config.jinja_templates import ROW
from pipelines.data.messages import parse_messages
from pipelines.data.templates import is_valid_placeholder
from pipelines.errors import DataError
from pipelines.storage.strict_json import NonTextValue, dump

MAX_DEPTH = 2
MAX_KEYS = 30
"""Keys of an object that are columns of their own."""
MIN_CONVERSATIONS = 0.9
"""Share of values that must be conversations."""
_PROBED = 300
_RESERVED = frozenset(
    {
        "range",
        "dict",
        "namespace",
        "true",
        "false",
        "none",
        "and",
        "or",
        "not",
        "in",
        "is",
        "if",
        "else",
        "loop",
        "self",
        "caller",
    }
)
"""Words that are no columns in a Jinja template."""


@dataclass(frozen=True)
class Column:
    """A column of a file, or a key of the objects in one.

    name: as it is shown: `answers.text`.
    source: the column of the file.
    keys: the keys within its objects.
    values: one per row; None for a missing or blank one.
    num_empty: the values that are an empty list.
    """

    name: str
    source: str
    keys: tuple[str, ...]
    values: list[Any]
    num_empty: int = 0

    @cached_property
    def present(self) -> list[Any]:
        return [value for value in self.values if value is not None]

    @property
    def num_given(self) -> int:
        """The rows that have a value, or an empty list."""
        return len(self.present) + self.num_empty

    @property
    def num_missing(self) -> int:
        return len(self.values) - len(self.present)

    @cached_property
    def kind(self) -> str:
        """text, number, boolean, texts (a list of texts), list, object, or mixed."""
        kinds = {_kind(value) for value in self.present}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"

    @property
    def is_scalar(self) -> bool:
        return all(isinstance(value, str | int | float) for value in self.present) and bool(self.present)

    @cached_property
    def texts(self) -> list[str]:
        """The values as a template writes them; those of a list one below the other."""
        return [
            value if isinstance(value, str) else "\n".join(value) if _kind(value) == "texts" else dump(value)
            for value in self.present
        ]

    @cached_property
    def counts(self) -> Counter[str]:
        """The number of rows of each value."""
        return Counter(self.texts)

    @property
    def num_distinct(self) -> int:
        return len(self.counts)

    @property
    def is_constant(self) -> bool:
        return self.num_distinct <= 1 and len(self.present) > 1

    @cached_property
    def mean_words(self) -> float:
        return sum(len(text.split()) for text in self.texts) / max(1, len(self.texts))

    @cached_property
    def mean_characters(self) -> float:
        return sum(map(len, self.texts)) / max(1, len(self.texts))

    @property
    def expression(self) -> str:
        """The column as an expression of Jinja."""
        parts = [self.source, *self.keys]
        if all(part.isidentifier() and part not in _RESERVED for part in parts):
            return ".".join(parts)
        return ROW + "".join(f"[{dump(part)}]" for part in parts)

    @property
    def has_placeholder(self) -> bool:
        """Whether `{column}` in a template names it and its values are text there."""
        return not self.keys and self.is_scalar and is_valid_placeholder(self.source)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name, in lower case: `reviewText` is review and text."""
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", ".".join((self.source, *self.keys)))
        return tuple(word for word in re.split(r"[\W_]+", spaced.lower()) if word)

    @property
    def normalized(self) -> str:
        """Its name in lower case, without marks."""
        return "_".join(self.words)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "texts" if value and all(isinstance(item, str) for item in value) else "list"
    return "object" if isinstance(value, dict) else "other"


def _given(value: Any) -> Any:
    """The value, None for one that a template would refuse as missing, or a blank text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, NonTextValue) or value in ("", [], {}):
        return None
    return None if isinstance(value, str) and not value.strip() else value


def _column(name: str, source: str, keys: tuple[str, ...], values: list[Any]) -> Column:
    num_empty = sum(isinstance(value, list) and not value for value in values)
    return Column(name, source, keys, [_given(value) for value in values], num_empty)


def read_columns(sample: Sample) -> list[Column]:
    """The columns of a sample, without one that has no name, and the keys of their objects."""
    columns: list[Column] = []
    for name in filter(None, sample.columns):
        column = _column(name, name, (), sample.values(name))
        columns += [column, *_nested(column)]
    return columns


def _nested(column: Column) -> Iterator[Column]:
    if column.kind != "object" or len(column.keys) >= MAX_DEPTH:
        return
    keys = dict.fromkeys(key for value in column.present for key in value)
    if len(keys) > MAX_KEYS:
        return
    for key in keys:
        values = [None if value is None else value.get(key) for value in column.values]
        child = _column(f"{column.name}.{key}", column.source, (*column.keys, key), values)
        yield child
        yield from _nested(child)


def is_conversation(column: Column) -> bool:
    """Whether the column holds conversations with an answer of the assistant."""
    if column.keys or column.kind not in ("list", "object", "text"):
        return False
    probed = column.present[:_PROBED]
    if column.kind == "text" and not all(text.lstrip().startswith(("[", "{")) for text in probed[:5]):
        return False
    return bool(probed) and sum(_has_answer(column.source, value) for value in probed) >= MIN_CONVERSATIONS * len(
        probed
    )


def _has_answer(name: str, value: Any) -> bool:
    try:
        one = isinstance(value, dict) and isinstance(value.get("role", value.get("from")), str)
        messages = parse_messages(name, [value] if one else value).messages
        return any(message["role"] == "assistant" for message in messages)
    except DataError:
        return False


def is_prompt_of_messages(column: Column) -> bool:
    """Whether the column holds messages without an answer, as the prompts of TRL do."""
    if column.keys or column.kind != "list":
        return False
    probed = column.present[:_PROBED]
    try:
        return all(parse_messages(column.source, value).messages[-1]["role"] == "user" for value in probed)
    except DataError:
        return False
