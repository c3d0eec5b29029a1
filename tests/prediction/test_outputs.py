"""Outputs of `predict`: what is written is what alfine's own readers read, and no value is changed silently."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.readers import read_rows
from pipelines.errors import RunError
from pipelines.prediction.column_types import ColumnTypes
from pipelines.prediction.outputs import check_output, convert
from pipelines.prediction.predict import COLUMNS
from pipelines.storage.strict_json import dump

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("abc"), children, max_size=2),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["q", "é", "a b", "n"]), VALUES, max_size=4), min_size=1, max_size=6)


def written(rows, name, folder=Path()):
    """The path of the rows as an output `name`, and the notes."""
    rows = [{**row, "prediction": f"p{index}", "prediction_finish_reason": "stop"} for index, row in enumerate(rows)]
    journal = folder / f"{name}.partial"
    journal.write_text("".join(dump(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return folder / name, convert(journal, folder / name, COLUMNS)


@pytest.mark.parametrize("name", [f"o{suffix}{zip}" for suffix in (".jsonl", ".json", ".csv", ".tsv") for zip in ("", ".gz", ".zst", ".bz2", ".xz")])  # fmt: skip
def test_text_formats_are_read_again(tmp_path, name):
    rows = [{"q": 'a,b\n"c"\t\'', "n": 1.5, "l": [1, {"x": None}]}, {"q": "\r=1;\u2028é", "m": True}]
    output, notes = written(rows, name, tmp_path)
    found = read_rows(output)
    assert notes == [] and [row["prediction"] for row in found] == ["p0", "p1"]
    if ".json" in name:
        assert [{key: row[key] for key in given} for row, given in zip(found, rows, strict=True)] == rows
        assert list(found[0]) == ["q", "n", "l", "prediction", "prediction_finish_reason"]
    else:
        assert list(found[0]) == ["q", "n", "l", "m", "prediction", "prediction_finish_reason"]
        cells = [[row[name] for name in "qnlm"] for row in found]
        assert cells == [[rows[0]["q"], "1.5", '[1, {"x": null}]', ""], [rows[1]["q"], "", "", "true"]]


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz"])
@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_every_text_survives_a_table(tmp_path_factory, suffix, rows):
    output, _ = written(rows, f"o{suffix}", tmp_path_factory.mktemp("table"))
    for row, found in zip(rows, read_rows(output), strict=True):
        for name, value in row.items():
            expected = value if isinstance(value, str) else "" if value is None else dump(value)
            assert found[name] == expected


@given(rows=ROWS)
@settings(max_examples=150, deadline=None)
def test_every_value_survives_parquet(tmp_path_factory, rows):
    output, notes = written(rows, "o.parquet", tmp_path_factory.mktemp("parquet"))
    as_json = {note.removeprefix("column ").split(":")[0] for note in notes}
    for row, found in zip(rows, read_rows(output), strict=True):
        for name in found:
            value = row.get(name, found[name] if name in COLUMNS else None)
            expected = dump(value) if name in as_json and value is not None else value
            assert found[name] == expected, (name, notes)


def test_types_of_parquet_columns(tmp_path):
    rows = [
        {"i": 1, "f": 1, "t": "x", "b": True, "l": ["a"], "m": [{"role": "user", "content": "x"}], "mixed": 1, "none": None},
        {"i": 2**60, "f": 0.5, "l": [], "mixed": "1"},
        {"i": -1, "f": None, "t": None, "mixed": None},
    ]  # fmt: skip
    output, notes = written(rows, "o.parquet", tmp_path)
    types = {field.name: str(field.type) for field in pq.read_schema(output)}
    assert types == {
        "i": "int64",
        "f": "double",
        "t": "string",
        "b": "bool",
        "l": "list<element: string>",
        "m": "list<element: struct<role: string, content: string>>",
        "mixed": "string",
        "none": "string",
        "prediction": "string",
        "prediction_finish_reason": "string",
    }
    assert notes == ["column mixed: its values have no common type; written as JSON text"]
    assert [row["mixed"] for row in read_rows(output)] == ["1", '"1"', None]


def test_large_integers_are_not_rounded_to_floats():
    types = ColumnTypes()
    types.add({"x": 2**53 + 1})
    types.add({"x": 0.5})
    assert types.convert("x", 2**53 + 1) == "9007199254740993" and len(types.notes()) == 1


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("o.jsonl.gz", "o.parquet", "o.csv.zst"):
        first = written([{"q": "x"}], name, tmp_path)[0].read_bytes()
        assert written([{"q": "x"}], name, tmp_path)[0].read_bytes() == first
    assert b"partial" not in (tmp_path / "o.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "o.jsonl.gz").read_bytes()))["q"] == "x"


def test_surrogates_of_a_model_are_replaced(tmp_path):
    """The journal escapes them; no table can hold them."""
    for name in ("o.csv", "o.parquet", "o.jsonl.gz"):
        (output, _) = written([{"q": "\\ud800 \\\\ud800 \ud800"}], name, tmp_path)
        assert read_rows(output)[0]["q"] == "\\ud800 \\\\ud800 \ufffd"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("rows.jsonl", "is the input file"),
        ("x/../rows.jsonl", "is the input file"),
        ("link.jsonl", "is the input file"),
        (".", "is a folder"),
        ("out", r"has no ending, so its format is unknown; write \.jsonl, \.ndjson, .* or \.parquet"),
        ("out.txt", "ends in .txt, so its format is unknown; write"),
        ("out.xlsx", "ends in .xlsx, so its format is unknown"),
        ("out.parqet", "did you mean .parquet?"),
        ("out.parquet.gz", "compressed already; leave out .gz"),
        ("old.jsonl", r"is written by way of old\.jsonl\.partial, which is an input file"),
        ("pipe.jsonl", "is not a file"),
    ],
)
def test_outputs_that_must_not_be_written(tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    inputs = [Path("rows.jsonl"), Path("old.jsonl.partial")]
    for path in inputs:
        path.write_text("{}\n")
    Path("link.jsonl").symlink_to("rows.jsonl")
    import os

    os.mkfifo("pipe.jsonl")
    with pytest.raises(RunError, match=message):
        check_output(Path(output), inputs, [Path(f"{output}.partial")])
