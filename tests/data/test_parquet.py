"""Every type of a Parquet column: read as a JSON value or a NonTextValue, and written again by any JSON writer."""

import json
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.parquet import read_parquet
from pipelines.data.templates import fill
from pipelines.errors import DataError
from pipelines.storage.strict_json import NonTextValue, dump

ID = uuid.UUID(int=7)


def first_value(tmp_path, column):
    pq.write_table(pa.table({"c": column, "text": ["x"] * len(column)}), tmp_path / "a.parquet")
    rows = [row for _, row in read_parquet(tmp_path / "a.parquet")]
    assert len(rows) == len(column) and all(row["text"] == "x" for row in rows)
    for row in rows:
        assert json.loads(dump(row), parse_constant=pytest.fail).keys() == {"c", "text"}
    return rows[0]["c"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([datetime(2024, 5, 1, 12, 30)], pa.timestamp("us")), "2024-05-01T12:30:00"),
        (pa.array([datetime(2024, 5, 1, 12, 30, tzinfo=UTC)], pa.timestamp("ms", "UTC")), "2024-05-01T12:30:00+00:00"),
        (pa.array([datetime(2024, 5, 1, 10, tzinfo=UTC)], pa.timestamp("us", "+02:00")), "2024-05-01T12:00:00+02:00"),
        (pa.array([1714566600123456789], pa.timestamp("ns")), "2024-05-01T12:30:00.123456789"),
        (pa.array([date(2024, 5, 1)], pa.date32()), "2024-05-01"),
        (pa.array([date(2024, 5, 1)], pa.date64()), "2024-05-01"),
        (pa.array([time(12, 30)], pa.time32("ms")), "12:30:00"),
        (pa.array([timedelta(hours=1, minutes=30)], pa.duration("us")), "PT5400S"),
        (pa.array([timedelta(milliseconds=-1500)], pa.duration("ms")), "-PT1.5S"),
        (pa.array([Decimal("12.50")]), "12.50"),
        (pa.array([Decimal("0.000000001")], pa.decimal256(40, 9)), "0.000000001"),
        (pa.array([{"day": date(2024, 5, 1), "list": [Decimal("1.0")]}]), {"day": "2024-05-01", "list": ["1.0"]}),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "a"),
        (pa.array([["a", "b"]], pa.large_list(pa.string())), ["a", "b"]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), [["k", 1]]),
        (pa.array([0.1], pa.float16()), 0.1),
        (pa.array([0.1], pa.float32()), 0.1),
        (pa.array([0.1], pa.float64()), 0.1),
        (pa.array([float("nan")]), None),
        (pa.array([float("nan")], pa.float32()), None),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([True]), True),
        (pa.array([ID.bytes], pa.uuid()), str(ID)),
        (pa.array(['{"a": 1}'], pa.json_()), '{"a": 1}'),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), True),
        (pa.array(["x"], pa.string_view()), "x"),
        (pa.nulls(1), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_types_with_a_json_value(tmp_path, column, expected):
    value = first_value(tmp_path, column)
    assert value == expected and type(value) is type(expected)


def badly_encoded():
    return pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])


@pytest.mark.parametrize(
    ("column", "message", "written"),
    [
        (pa.array([b"\xff\x00"]), "column c holds bytes; write them as text", "/wA="),
        (pa.array([b"text"], pa.large_binary()), "column c holds bytes", "dGV4dA=="),
        (pa.array([b"ab"], pa.binary(2)), "column c holds bytes", "YWI="),
        (pa.array([float("-inf")]), "column c is -Infinity", "-Infinity"),
        (pa.array([float("inf")], pa.float32()), "column c is Infinity", "Infinity"),
        (pa.array([10**12], pa.timestamp("s")), "column c of type timestamp.ms. cannot be read", None),
        (pa.array([10**7], pa.date32()), "column c of type date32.day. cannot be read", None),
        (pa.array([1], pa.timestamp("us", "Mars/Base")), "cannot be read .*Mars/Base.*; write it as text", None),
        (badly_encoded(), "column c of type string cannot be read .*utf-8", None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_types_without_text_are_an_error_in_a_template(tmp_path, column, message, written):
    value = first_value(tmp_path, column)
    assert isinstance(value, NonTextValue) and written in (None, value.text)
    with pytest.raises(DataError, match=message):
        fill("{c}", {"c": value})


@pytest.mark.parametrize("imported", ["pass", "import pandas"])
def test_pandas_periods_are_not_read_as_integers(tmp_path, imported):
    import pandas as pd

    pd.DataFrame({"month": pd.period_range("2024-05", periods=2, freq="M"), "c": pd.Categorical([7, 8])}).to_parquet(
        tmp_path / "a.parquet"
    )
    program = f"""
{imported}
from pathlib import Path
from pipelines.data.parquet import read_parquet
from pipelines.storage.strict_json import dump
from pipelines.data.templates import fill
rows = [row for _, row in read_parquet(Path("a.parquet"))]
print(dump(rows[0]["c"]), len(dump(rows)) > 0)
fill("{{month}}", rows[0])
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (
        process.stdout == "7 True\n"
        and "column month is of the extension type pandas.period, whose values" in process.stderr
    )


def test_tensors(tmp_path):
    storage = pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    value = first_value(tmp_path, pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), storage))
    assert isinstance(value, NonTextValue) and "arrow.fixed_shape_tensor" in value.reason


def test_unreadable_rows(tmp_path):
    pq.write_table(pa.table({"c": pa.array([[1, 2], None], pa.list_(pa.int32(), 2))}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError,
        match=r"a.parquet:1: cannot be read from this row on \(Expected all lists .*write the file again",
    ):
        list(read_parquet(tmp_path / "a.parquet"))


def test_a_value_out_of_range_does_not_affect_other_rows(tmp_path):
    pq.write_table(pa.table({"c": pa.array([0, 10**12, None], pa.timestamp("s"))}), tmp_path / "a.parquet")
    first, second, third = (row["c"] for _, row in read_parquet(tmp_path / "a.parquet"))
    assert (first, third) == ("1970-01-01T00:00:00", None) and isinstance(second, NonTextValue)


def test_duplicate_columns(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns have the name 'a'"):
        list(read_parquet(tmp_path / "a.parquet"))


def test_rows_are_numbered_over_batches(tmp_path):
    pq.write_table(pa.table({"n": list(range(2500))}), tmp_path / "a.parquet", row_group_size=700)
    assert [(index, row["n"]) for index, row in read_parquet(tmp_path / "a.parquet")] == [
        (index + 1, index) for index in range(2500)
    ]


def test_time_zones_are_kept(tmp_path):
    moment = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    value = first_value(tmp_path, pa.array([moment], pa.timestamp("us", "Europe/Berlin")))
    assert datetime.fromisoformat(value) == moment and value.endswith("+02:00")
