"""Parquet files: rows as JSON values, for all types of columns."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError, Problem
from pipelines.registry import lazy_import
from pipelines.storage.strict_json import NonTextValue, infinity

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
else:  # most jobs have no Parquet file
    np, pa, pq = lazy_import("numpy"), lazy_import("pyarrow"), lazy_import("pyarrow.parquet")

DECODE_BATCH_SIZE = 1024
SUPPORTED_EXTENSION_TYPES = ("arrow.uuid", "arrow.json", "arrow.bool8")
"""Extension types whose values can be written as JSON."""


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows by column, each after its index from 1.

    Numbers, booleans, texts, lists and structs become their JSON counterparts. Dates, times and timestamps become ISO
    8601 texts, as do durations (PT5400S); decimals become their digits, and NaN becomes None. Bytes, other extension
    types than SUPPORTED_EXTENSION_TYPES, and values that Python cannot represent become a `NonTextValue`.

    Raises DataError for a file that is not valid or that has two columns of one name.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise DataError(Problem("not a valid Parquet file (truncated?)", str(path))) from None
    names = list(file.schema_arrow.names)
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise DataError(Problem(f"two columns have the name {duplicate!r}; rename one", str(path)))
    index = 0
    try:
        for batch in file.iter_batches(DECODE_BATCH_SIZE):
            for values in zip(*json_columns(batch), strict=True):
                index += 1
                yield index, dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:120]
        message = (
            f"cannot be read from this row on ({cause}); write the file again, with columns of unusual types as text"
        )
        raise DataError(Problem(message, str(path), index + 1)) from None


def json_columns(batch: pa.RecordBatch) -> list[list[Any]]:
    """The values of each column of a batch as JSON values, see `read_parquet`."""
    return [
        _json_values(column, _unsupported_extension(field))
        for column, field in zip(batch.columns, batch.schema, strict=True)
    ]


def _unsupported_extension(field: pa.Field) -> str | None:
    """The name of the column's extension type, or None if it has none or a supported one.

    The metadata are read too: whether Arrow knows a type depends on what else is imported. Without pandas, its periods
    look like the integers that they are stored as.
    """
    name = getattr(field.type, "extension_name", None)
    name = name or (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    return None if name in ("", *SUPPORTED_EXTENSION_TYPES) else str(name)


def _json_values(column: pa.Array, unsupported_extension: str | None) -> list[Any]:
    """The values of one column, one per row. What an unsupported extension stores has no meaning: 652 for May 2024."""
    if unsupported_extension is not None:
        why = f"is of the extension type {unsupported_extension}, whose values have no text form; write them as text"
        return [
            NonTextValue(str(value), why) if value.is_valid else None for value in getattr(column, "storage", column)
        ]
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, LookupError):  # one value cannot be represented: convert them one by one
        values = [_python_value(column, index) for index in range(len(column))]
    convert_float = _float_converter(column)
    return [convert_float(value) if isinstance(value, float) else _json_value(value) for value in values]


def _python_value(column: pa.Array, index: int) -> Any:
    try:
        return column[index].as_py()
    except (ValueError, OverflowError, LookupError) as error:
        why = f"of type {column.type} cannot be read ({' '.join(str(error).split())[:80]}); write it as text"
        return NonTextValue(f"<{column.type}>", why)


def _float_converter(column: pa.Array) -> Callable[[float], Any]:
    """The function that converts the column's floats: 0.1 in 32 bits becomes 0.1, not its nearest double
    0.10000000149011612."""
    narrow_type = {pa.float32(): np.float32, pa.float16(): np.float16}.get(column.type)
    return _json_value if narrow_type is None else lambda value: _json_value(float(str(narrow_type(value))))


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | NonTextValue):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            return infinity("Infinity" if value > 0 else "-Infinity")
        return None if math.isnan(value) else value
    if isinstance(value, bytes):
        why = "holds bytes; write them as text (in pandas: column.str.decode('utf-8')), or name another column"
        return NonTextValue(base64.b64encode(value).decode(), why)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{'-' if value < timedelta(0) else ''}PT{_seconds(abs(value) / timedelta(microseconds=1))}S"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dict):
        return {str(key): _json_value(child) for key, child in value.items()}
    if hasattr(value, "tolist"):
        return _json_value(value.tolist())
    return [_json_value(child) for child in value] if isinstance(value, list | tuple) else str(value)


def _seconds(microseconds: float) -> str:
    seconds, remainder = divmod(round(microseconds), 1_000_000)
    return f"{seconds}.{remainder:06d}".rstrip("0").rstrip(".")
