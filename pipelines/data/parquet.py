"""The rows of a Parquet file as JSON values, whatever types its columns have."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import NotText, infinity

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
"""Rows decoded at once."""
KNOWN = ("arrow.uuid", "arrow.json", "arrow.bool8")
"""Extension types that have a value in JSON."""


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number from 1. Raises DataError for a file that is none, or that names a column twice.

    Numbers, booleans, texts, lists and structs are JSON's own. A date, time or timestamp is its ISO 8601 text, a duration
    as well (PT5400S), a decimal its digits, NaN no value. Bytes, extension types but for KNOWN, and what Python has no value
    for, are a NotText.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise DataError(Problem("is not a Parquet file, or not a whole one; write it again", str(path))) from None
    names = list(file.schema_arrow.names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(Problem(f"two columns have the name {twice!r}; rename one", str(path)))
    number = 0
    try:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            columns = [
                _values(column, _extension(field)) for column, field in zip(batch.columns, batch.schema, strict=True)
            ]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:120]
        message = (
            f"its rows cannot be read from here on ({cause}); write the file again, a column of an unusual type as text"
        )
        raise DataError(Problem(message, str(path), number + 1)) from None


def _extension(field: pa.Field) -> str | None:
    """The name of the column's extension type, where it is not one of KNOWN. Whether Arrow knows the type itself depends on
    what else is imported: pandas' periods are then seen as the whole numbers that they are stored as."""
    name = (
        getattr(field.type, "extension_name", None) or (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    )
    return None if name in ("", *KNOWN) else str(name)


def _values(column: pa.Array, extension: str | None) -> list[Any]:
    """`extension` is the type's name where its stored values say nothing: 652 for May 2024."""
    if extension is not None:
        why = f"is of the extension type {extension}, whose values have no text of their own; write them as text"
        return [NotText(str(value), why) if value.is_valid else None for value in getattr(column, "storage", column)]
    try:
        found = column.to_pylist()
    except (ValueError, OverflowError, LookupError):  # one value that Python has no place for: the others are read
        found = [_one(column, row) for row in range(len(column))]
    short = _shortest(column)
    return [short(value) if isinstance(value, float) else _plain(value) for value in found]


def _one(column: pa.Array, row: int) -> Any:
    try:
        return column[row].as_py()
    except (ValueError, OverflowError, LookupError) as error:
        why = f"of type {column.type} cannot be read ({' '.join(str(error).split())[:80]}); write it as text"
        return NotText(f"<{column.type}>", why)


def _shortest(column: pa.Array) -> Any:
    """How a number of the column becomes Python's: 0.1 in 32 bits is 0.1, not the 0.10000000149011612 nearest to it."""
    import numpy as np
    import pyarrow as pa

    narrow = {pa.float32(): np.float32, pa.float16(): np.float16}.get(column.type)
    return _plain if narrow is None else lambda value: _plain(float(str(narrow(value))))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | NotText):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            return infinity("Infinity" if value > 0 else "-Infinity")
        return None if math.isnan(value) else value
    if isinstance(value, bytes):
        why = "holds bytes; write them as text (in pandas: column.str.decode('utf-8')), or name another column"
        return NotText(base64.b64encode(value).decode(), why)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{'-' if value < timedelta(0) else ''}PT{_digits(abs(value) / timedelta(microseconds=1))}S"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(child) for child in value] if isinstance(value, list | tuple) else str(value)


def _digits(microseconds: float) -> str:
    seconds, rest = divmod(round(microseconds), 1_000_000)
    return f"{seconds}.{rest:06d}".rstrip("0").rstrip(".")
