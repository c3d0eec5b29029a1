"""The Arrow types of columns whose values are JSON values, chosen so that no value is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.registry import lazy_import
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import pyarrow as pa
else:  # only Parquet outputs need it
    pa = lazy_import("pyarrow")

Kind = Literal["null", "boolean", "integer", "large integer", "number", "text", "list", "object", "mixed"]
"""A large integer is one that no float represents exactly; mixed values have no common type."""
_EXACT_FLOAT = 1 << 53
_INT64 = 1 << 63


@dataclass(frozen=True)
class _Type:
    kind: Kind
    items: _Type | None = None
    """The type of the elements of a list."""
    fields: tuple[tuple[str, _Type], ...] = ()
    """The types of the values of an object, in the order of its keys."""


_NULL, _MIXED = _Type("null"), _Type("mixed")
_NUMBERS: Mapping[frozenset[Kind], Kind] = {
    frozenset(("integer", "number")): "number",
    frozenset(("integer", "large integer")): "large integer",
}


class ColumnTypes:
    """The type of each column of the rows that were added, in the order in which columns first appear.

    A column whose values have no common type, such as texts and numbers, or objects with different keys, is written as
    JSON text.
    """

    def __init__(self) -> None:
        self.columns: dict[str, _Type] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            known = self.columns.get(name, _NULL)
            self.columns[name] = known if known is _MIXED else _merge(known, _type_of(value))

    def arrow_type(self, name: str) -> pa.DataType:
        return _arrow_type(self.columns[name])

    def convert(self, name: str, value: Any) -> Any:
        """A value as it is to be stored in its column."""
        is_json = value is not None and self.columns[name] is _MIXED
        return dump(value) if is_json else value

    def notes(self) -> list[str]:
        """The columns that are written as JSON text."""
        names = [name for name, type_ in self.columns.items() if type_ is _MIXED]
        return [f"column {name}: its values have no common type; written as JSON text" for name in names]


def _type_of(value: Any) -> _Type:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return _Type("boolean")
    if isinstance(value, int):
        is_exact = abs(value) <= _EXACT_FLOAT
        return _Type("integer" if is_exact else "large integer") if -_INT64 <= value < _INT64 else _MIXED
    if isinstance(value, float):
        return _Type("number")
    if isinstance(value, str):
        return _Type("text")
    if isinstance(value, list):
        items = _NULL
        for item in value:
            items = _merge(items, _type_of(item))
        return _MIXED if items is _MIXED else _Type("list", items)
    fields = tuple((key, _type_of(child)) for key, child in value.items())
    return _MIXED if not fields or any(child is _MIXED for _, child in fields) else _Type("object", fields=fields)


def _merge(one: _Type, other: _Type) -> _Type:
    if one == other or other.kind == "null":
        return one
    if one.kind == "null":
        return other
    if one.kind != other.kind:
        number = _NUMBERS.get(frozenset((one.kind, other.kind)))
        return _Type(number) if number is not None else _MIXED
    if one.items is not None and other.items is not None:
        items = _merge(one.items, other.items)
        return _MIXED if items is _MIXED else _Type("list", items)
    children = dict(other.fields)
    if one.kind != "object" or set(children) != {key for key, _ in one.fields}:
        return _MIXED
    fields = tuple((key, _merge(child, children[key])) for key, child in one.fields)
    return _MIXED if any(child is _MIXED for _, child in fields) else _Type("object", fields=fields)


def _arrow_type(type_: _Type) -> pa.DataType:
    if type_.items is not None:
        return pa.list_(_arrow_type(type_.items))
    if type_.kind == "object":
        return pa.struct([(key, _arrow_type(child)) for key, child in type_.fields])
    numbers = {"boolean": pa.bool_(), "integer": pa.int64(), "large integer": pa.int64(), "number": pa.float64()}
    return numbers.get(type_.kind, pa.string())  # also a column without any value
