"""Readers: rows of valid files, and errors with their line."""

import datetime
import json
from pathlib import Path

import pytest

from pipelines.data.readers import numbered_rows, read_rows
from pipelines.errors import DataError


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = '{"a": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + '{"a": \n', ":2: is not JSON"),
        ("a.jsonl", "[1, 2]\n", ":1: expected an object, as in"),
        ("a.jsonl", GOOD.encode() + b'{"a": "\xff"}\n', ":2: is not UTF-8"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "[" * 100_000, ":1: its arrays and objects are nested too deeply"),
        (
            "a.jsonl",
            GOOD + '{"a": ' + "[" * 101 + "]" * 101 + "}\n",
            ":2: its arrays and objects are nested too deeply, more than 100 levels",
        ),
        ("a.jsonl", GOOD + '{"a": "x \\ud83d y"}\n', r":2: contains an unpaired surrogate, \\ud83d"),
        ("a.jsonl", GOOD + '{"a": {"b": ["\\uDE00\\uD83D"]}}\n', r":2: contains an unpaired surrogate, \\ude00"),
        ("a.jsonl", GOOD + '{"\\ud83d": 1}\n', ":2: contains an unpaired surrogate"),
        ("a.jsonl", GOOD + '{"a": "\\ud8"}\n', ":2: is not JSON"),
        ("a.jsonl", GOOD + '{"a": ' + "9" * 5000 + "}\n", ":2: has an integer of more than 4,300 digits"),
        ("a.jsonl", GOOD + '{"a": -1e999}\n', ":2: the number -1e999 is out of range"),
        ("a.jsonl", GOOD + '{"a": 1, "b": 2, "a": 3}\n', ":2: has the key 'a' twice in one object"),
        ("a.jsonl", GOOD + '{"b": [{"a": 1, "a": 1}]}\n', ":2: has the key 'a' twice"),
        ("a.jsonl", GOOD + '{"a": 1, " a": 2}\n', ":2: two columns have the name 'a' once white space is stripped"),
        ("a.jsonl", GOOD + '{"a": "x\ty"}\n', r":2: is not JSON: unescaped control character '\\t' in column 9"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ":3: has 3 cells, the header has 2"),
        ("a.csv", "a,b\n1\n", ":2: has 1 cells"),
        ("a.csv", "a,a\n1,2\n", ":1: two columns have the name 'a'"),
        ("a.csv", "a, a\n1,2\n", ":1: two columns have the name 'a'"),
        ("a.csv", "a, \n1,2\n", ":1: column 2 has no name"),
        ("a.csv", 'a,b\n"x"y,2\n', ":2: is not CSV"),
        ("a.csv", "a,b\n", "has no rows"),
        ("a.csv", "a,b\r1,2\r", ":1: its lines end with CR only"),
        ("a.csv", "a\rb,c\n1,2\n", ":1: is not CSV"),
        ("a.csv", "a,b\n1,2\n\ufeffa,b\n3,4\n", ":3: repeats the header"),
        ("a.parquet", "no parquet", "not a valid Parquet file"),
        ("a.txt", "x", "files end in .jsonl, .json, .csv, .tsv, .xlsx or .parquet, not '.txt'; write one JSON object"),
    ],
)
def test_invalid_files(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message.replace("[", r"\[").replace("(", r"\(")) as caught:
        read_rows(write(tmp_path, name, content))
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "b.jsonl").mkdir()
        read_rows(tmp_path / "b.jsonl")


def test_csv_values_are_unchanged_text(tmp_path):
    rows = read_rows(write(tmp_path, "a.csv", 'id,text\n001,"NA, or\nnull"\n002, x\n'))
    assert rows == [{"id": "001", "text": "NA, or\nnull"}, {"id": "002", "text": " x"}]


@pytest.mark.parametrize("header", ["id, text", 'id, "text"', "\ufeffid, text", "\ufeff\ufeffid ,  text "])
def test_spaces_after_commas_in_a_csv_header(tmp_path, header):
    rows = read_rows(write(tmp_path, "a.csv", header + '\n1, "a, b"\n2, c d\n'))
    assert rows == [{"id": "1", "text": "a, b"}, {"id": "2", "text": "c d"}]


def test_a_comma_in_a_quoted_column_name(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", '"name, first",text\nx, y\n')) == [{"name, first": "x", "text": " y"}]


def test_rows_have_the_line_on_which_they_begin(tmp_path):
    csv = write(tmp_path, "a.csv", 'a,b\n1,"x\ny"\n\n2,z\n')
    assert [(line, row["a"]) for line, row in numbered_rows(csv)] == [(2, "1"), (5, "2")]
    jsonl = write(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [(line, row["a"]) for line, row in numbered_rows(jsonl)] == [(2, 1), (4, 2)]


def test_byte_order_marks_in_concatenated_files(tmp_path):
    rows = read_rows(write(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\ufeff{"a": "\ufeffx"}\n'))
    assert rows == [{"a": 1}, {"a": "\ufeffx"}]


def test_nan_and_surrogate_pairs(tmp_path):
    rows = read_rows(
        write(
            tmp_path,
            "a.jsonl",
            '{"a": NaN, "b": "\\ud83d\\ude00", "c": "\\\\ud83d", "d": -0.0, "e": 12345678901234567890123}\n',
        )
    )
    assert rows == [{"a": None, "b": "😀", "c": "\\ud83d", "d": 0.0, "e": 12345678901234567890123}]


def test_formats_agree(tmp_path):
    import pandas as pd

    rows = [{"a": "x", "b": "ä\u2028b"}, {"a": "", "b": "2"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    write(tmp_path, "a.jsonl", "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert read_rows(tmp_path / "a.parquet") == read_rows(tmp_path / "a.jsonl") == read_rows(tmp_path / "a.csv") == rows


def test_a_row_of_100_kb(tmp_path):
    path = write(tmp_path, "a.csv", "a,b\n" + "x" * 200_000 + ",2\n")
    assert len(read_rows(path)[0]["a"]) == 200_000


def test_dates_in_csv_and_parquet_agree(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"day": [datetime.date(2024, 5, 1)], "x": ["y"]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert (
        read_rows(Path(tmp_path / "a.parquet"))
        == read_rows(Path(tmp_path / "a.csv"))
        == [{"day": "2024-05-01", "x": "y"}]
    )
