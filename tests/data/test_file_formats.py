"""Every format and compression of data files: the same rows, the notes on what was detected, and damaged files."""

import bz2
import gzip
import json
import lzma
import os
import zipfile

import openpyxl
import pyarrow as pa
import pytest

from pipelines.data.json_files import read_json_array
from pipelines.data.readers import SUFFIXES, numbered_rows, read_notes, read_rows
from pipelines.errors import DataError

ROWS = [{"text": "a, b", "label": "ä"}, {"text": 'c "d"\ne', "label": "no"}, {"text": "f;g", "label": "001"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content):
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


COMPRESSED = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "xz": lzma.compress}


def csv_text(delimiter):
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in ROWS]
    return "".join(delimiter.join(cells) + "\n" for cells in [["text", "label"], *quoted])


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FORMATS = {
    "a.jsonl": JSONL,
    "a.ndjson": JSONL,
    "a.json": json.dumps(ROWS),
    "b.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "c.json": json.dumps({"version": 1, "data": ROWS, "tags": ["x"], "empty": []}),
    "d.json": JSONL,
    "e.jsonl": json.dumps(ROWS, indent=1),
    "f.json": "".join(json.dumps(row, indent=2) + "\n" for row in ROWS).replace("}\n{", "}\n{"),
    "a.csv": csv_text(","),
    "b.csv": csv_text(";"),
    "c.csv": csv_text("\t"),
    "a.tsv": csv_text("\t"),
    "b.tsv": csv_text(","),
    "d.csv": csv_text(";").encode("cp1252"),
    "e.csv": csv_text(",").encode("utf-16"),
    "f.csv": csv_text("|").encode("utf-8-sig"),
    "g.json": json.dumps(ROWS, ensure_ascii=False).encode("utf-16"),
}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "f.json"])
@pytest.mark.parametrize("compression", ["", *COMPRESSED])
def test_every_format_and_compression_gives_the_same_rows(tmp_path, name, compression):
    content = FORMATS[name] if isinstance(FORMATS[name], bytes) else FORMATS[name].encode()
    path = write(tmp_path, f"{name}.{compression}".rstrip("."), COMPRESSED.get(compression, bytes)(content))
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.jsonl", None),
        ("a.json", None),
        ("a.csv", None),
        ("a.tsv", None),
        ("c.json", "its rows are the array 'data'; the other keys are left out (version, tags, empty)"),
        ("d.json", "holds one object per line; read as .jsonl"),
        ("e.jsonl", "holds one array of objects, not one object per line; read as .json"),
        ("b.csv", "its cells are separated by semicolons"),
        ("b.tsv", "its cells are separated by commas"),
        ("d.csv", "is not UTF-8; read as Windows-1252"),
        ("e.csv", "read as UTF-16"),
    ],
)
def test_what_is_detected_is_stated(tmp_path, name, note):
    notes = read_notes(write(tmp_path, name, FORMATS[name]))
    assert (notes == []) if note is None else any(note in stated for stated in notes)


def test_lines_of_the_rows_of_json_arrays(tmp_path):
    path = write(tmp_path, "a.json", '\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n')
    assert [(line, row["a"]) for line, row in numbered_rows(path)] == [(3, 1), (5, 2), (6, 3)]


@pytest.mark.parametrize(
    "content",
    [
        '{"a": ["x", "y"], "b": [1, null]}',
        '{"a": ["x", "y"],\n "b": [1, null]}',
        '{"a": {"0": "x", "1": "y"}, "b": {"0": 1, "1": null}}',  # pandas.DataFrame.to_json(file)
    ],
)
def test_json_columns_are_rows(tmp_path, content):
    path = write(tmp_path, "a.json", content)
    assert list(numbered_rows(path)) == [(1, {"a": "x", "b": 1}), (2, {"a": "y", "b": None})]
    assert read_notes(path) == ["holds columns, not rows; read as 2 rows"]


@pytest.mark.parametrize(
    ("content", "rows", "others"),
    [
        ('{"a": ["x", "y"], "b": [{"k": 1}, {"k": 2}]}', [{"a": "x", "b": {"k": 1}}, {"a": "y", "b": {"k": 2}}], None),
        ('{"names": ["x", "y"], "data": [{"k": 1}, {"k": 2}, {"k": 3}]}', [{"k": 1}, {"k": 2}, {"k": 3}], "names"),
        ('{"names": ["x", "y"], "data": [{"k": 1}], "n": [1]}', [{"k": 1}], "names, n"),
    ],
)
def test_an_array_of_objects_is_a_column_if_it_is_as_long_as_the_others(tmp_path, content, rows, others):
    path = write(tmp_path, "a.json", content)
    assert read_rows(path) == rows
    (note,) = read_notes(path)
    assert (f"left out ({others})" in note) if others else ("holds columns" in note)


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_json_values_across_the_parts_of_a_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr("pipelines.data.text_files._CHUNK_BYTES", size or 1 << 20)
    rows = [{"a": "ä\n" * 40, "n": 12345.5, "list": [True, None, {"x": "\\u00e4"}]}, {"a": "", "n": -1e5, "list": []}]
    for content in (
        json.dumps(rows),
        json.dumps(rows, ensure_ascii=False, indent=3),
        json.dumps({"x": 17, "rows": rows}),
    ):
        assert [row for _, row in read_json_array(write(tmp_path, "a.json", content))] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1}, {"a": ', ":1: the file ends before its JSON value does"),
        ("a.json", '[{"a": 1}\n', ":2: is not JSON: expected ',', not the end of the file; is it truncated?"),
        ("a.json", '[{"a": 1},\n]', ":2: is not JSON: there is a comma after the last object"),
        ("a.json", '[{"a": 1},\n{"a": NaN, "b" 1}]', ":2: is not JSON: expecting ':' delimiter in column 16"),
        ("a.json", '[{"a": 1},\n{"a": 1, "a": 2}]', ":2: has the key 'a' twice"),
        ("a.json", '[{"a": 1},\n\n 17]', ":3: expected an object"),
        ("a.json", '[{"a": 1}]\n[{"a": 2}]', ":2: there is text after the end"),
        ("a.json", '{"a": {"x": "x"},\n "b": {"x": "y"}}', "holds no array of objects"),
        ("a.json", '{"a": {"0": "x", "1": "y"},\n "b": {"0": "y", "2": "y"}}', "holds no array of objects"),
        ("a.json", '{"a": ["x", "y"], "b": ["y"]}', "different numbers of values (a: 2, b: 1)"),
        ("a.json", '{"columns": ["a"],\n "index": [0, 1], "data": [["x"], ["y"]]}', 'orient="records"'),
        ("a.json", '{"a": ["x"],\n "b": ["y"]} 1', ":2: there is text after the end"),
        ("a.json", '{"a": [{"x": 1}],\n "b": [{"x": 2}]}', ":2: the object has two arrays of objects, 'a' and 'b'"),
        ("a.json", '"text"', ":1: expected a JSON array of objects"),
        ("a.json", "", ":1: expected a JSON array of objects"),
        ("a.json", "[]", "has no rows"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '[{"a": ' + "9" * 5000 + "}]", ":1: has an integer of more than 4,300 digits"),
        ("a.csv", "a;b\n1;2\n1;2;3\n", ":3: has 3 cells, the header has 2; quote cells that contain semicolons"),
        ("a.csv", b"a,b\n1,\x00\xff\xfe\x81\n", "is not text in a known encoding"),
        ("a.jsonl", JSONL[:10] + b"\xe4" + JSONL[10:], ":1: is not UTF-8"),
        ("a.jsonl", gzip.compress(JSONL), "despite its name, this is compressed with gzip; name it .gz"),
        ("a.jsonl", zstd(JSONL), "despite its name, this is compressed with zstd"),
        ("a.jsonl.gz", JSONL, "cannot be decompressed as gz"),
        ("a.jsonl.zst", JSONL, "cannot be decompressed as zst"),
        ("a.jsonl.gz", gzip.compress(JSONL)[:-20], "cannot be decompressed as gz"),
        ("a.csv.zst", zstd(JSONL * 1000)[:-5], "cannot be decompressed as zst"),
        ("a.json.bz2", bz2.compress(JSONL)[:-9], "cannot be decompressed as bz2"),
        ("a.json.xz", b"", "cannot be decompressed as xz"),
        ("a.parquet.gz", b"", "a .parquet file is compressed already"),
        ("a.gz", b"", "files end in .jsonl"),
        ("a.xls", b"", "save it as .xlsx or CSV"),
        ("a.pkl", b"", "pickles can run code"),
        ("a.xlsx", b"PK", "not a valid .xlsx workbook"),
        ("a.xlsx", "a,b", "not a valid .xlsx workbook"),
    ],
)
def test_damaged_files_are_refused_with_the_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, name, content))
    assert message in str(caught.value)


def test_one_column_keeps_its_marks(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", "text\nx; y\nz\n")) == [{"text": "x; y"}, {"text": "z"}]


@pytest.mark.parametrize(
    "text", ["Grüße; schöne Straße", "Cena: 5 zł, łódka", "Привет, мир, это довольно длинный текст"]
)
def test_a_guessed_encoding_is_named(tmp_path, text):
    encoding = {"G": "cp1252", "C": "cp1250", "П": "cp1251"}[text[0]]
    path = write(tmp_path, "a.csv", ("text\n" + f'"{text}"\n' * 20).encode(encoding))
    assert any(note.startswith("is not UTF-8; read as ") for note in read_notes(path))
    if encoding == "cp1252":
        assert read_rows(path)[0] == {"text": text}


def workbook(tmp_path, rows, sheets=("first",), name="a.xlsx"):
    book = openpyxl.Workbook()
    book.active.title = sheets[0]
    for row in rows:
        book.active.append(row)
    for sheet in sheets[1:]:
        book.create_sheet(sheet).append(["x"])
    book.save(tmp_path / name)
    return tmp_path / name


def test_workbooks(tmp_path):
    from datetime import date, datetime

    path = workbook(
        tmp_path,
        [[], ["text", "n", "day", "at"], ["ä", 1.0, date(2024, 5, 1), datetime(2024, 5, 1, 12, 30)], [], ["b", 0.5]],
        sheets=("data", "notes", "more"),
    )
    assert list(numbered_rows(path)) == [
        (3, {"text": "ä", "n": 1, "day": "2024-05-01", "at": "2024-05-01T12:30:00"}),
        (5, {"text": "b", "n": 0.5, "day": None, "at": None}),
    ]
    assert read_notes(path) == ["read from its sheet 'data'; left out: 'notes', 'more'; the first one is read"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "a"], [1, 2]], ":1: two columns have the name 'a'"),
        ([["a", None, "b"], [1, 2, 3]], ":1: column 2 has no name in the header"),
        ([["a"], [1, 2]], ":2: has 2 to the right of the last column"),
        ([["a", "b"]], "has no rows"),
        ([], "has no rows"),
    ],
)
def test_workbooks_that_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError) as caught:
        read_rows(workbook(tmp_path, rows))
    assert message in str(caught.value)


def test_a_workbook_that_claims_to_be_huge(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.spreadsheets.MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DataError, match="too large a workbook"):
        read_rows(workbook(tmp_path, [["a"], [1]]))


def test_a_zip_file_that_is_no_workbook(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(DataError, match="not a valid .xlsx workbook"):
        read_rows(tmp_path / "a.xlsx")


def test_datasets_saved_to_disk(tmp_path):
    import datasets

    dataset = datasets.Dataset.from_list([{**row, "n": 1.5} for row in ROWS])
    dataset.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "several"))
    assert list(numbered_rows(tmp_path / "one")) == [(index + 1, {**row, "n": 1.5}) for index, row in enumerate(ROWS)]
    assert read_rows(tmp_path / "several" / "test") == [{**row, "n": 1.5} for row in ROWS]
    with pytest.raises(DataError, match="holds the splits train, test; name one"):
        read_rows(tmp_path / "several")
    file = next((tmp_path / "one").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="not a valid Arrow file"):
        read_rows(tmp_path / "one")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_utf_16_without_a_byte_order_mark_is_refused(tmp_path, name):
    path = write(tmp_path, name, "text\nhello\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="UTF-16 without its mark"):
        read_rows(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pipe_is_refused_and_does_not_block(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    os.mkfifo(path)
    for read in (read_rows, read_notes):
        with pytest.raises(DataError, match="is not a file"):
            read(path)


def test_a_workbook_of_an_unknown_version_of_zip(tmp_path):
    path = workbook(tmp_path, [["a"], ["b"]])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 254
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a valid .xlsx workbook"):
        read_rows(path)


def test_an_unclosed_quote_does_not_read_a_large_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.csv_files.MAX_LINE_BYTES", 1000)
    path = write(tmp_path, "a.csv", 'a,b\n1,2\n3,"' + "x\n" * 1000)
    with pytest.raises(DataError, match=r"a\.csv:3: has a cell of more than 64 MB"):
        read_rows(path)
