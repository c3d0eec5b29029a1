"""The files that predictions are written to, in the format that their name says."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipelines.config.messages import did_you_mean
from pipelines.data.text_files import COMPRESSIONS, data_suffix
from pipelines.errors import RunError
from pipelines.prediction.column_types import ColumnTypes
from pipelines.registry import lazy_import
from pipelines.storage.files import atomic_write
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:  # most outputs are JSON Lines
    pa, pq = lazy_import("pyarrow"), lazy_import("pyarrow.parquet")

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
"""The suffixes of text tables, with their delimiters."""
SUFFIXES = (*LINES, ".json", *TABLES, ".parquet")
_ESCAPED_SURROGATE = re.compile(r"(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}")
ROW_GROUP_SIZE = 16_384
"""Rows of a row group of a Parquet file, which are in memory together."""
MAX_COLUMNS = 10_000
"""Columns of a table. More are a sign of keys that are values, and would not fit into memory."""


def check_output(output: Path, inputs: Iterable[Path], working_files: Sequence[Path] = ()) -> None:
    """Raises RunError if predictions cannot or must not be written to `output`.

    inputs: the files of rows. working_files: other files that are written until `output` is complete.
    """
    if output.is_dir():
        raise RunError(f"--output {output} is a folder; name a file")
    if output.exists() and not output.is_file():
        raise RunError(f"--output {output} is not a file (a pipe, socket or device); leave --output out for a pipe")
    suffix = data_suffix(output)
    compression = output.suffix.lower() if output.suffix.lower() in COMPRESSIONS else ""
    if suffix not in SUFFIXES:
        similar = did_you_mean(suffix, SUFFIXES)
        advice = f"did you mean {similar}?" if similar else f"write {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        named = f"ends in {suffix}" if suffix else "has no ending"
        raise RunError(f"--output {output} {named}, so its format is unknown; {advice}")
    if compression and suffix == ".parquet":
        raise RunError(f"--output {output}: a Parquet file is compressed already; leave out {compression}")
    resolved = {path.resolve() for path in inputs}
    if output.resolve() in resolved:
        raise RunError(f"--output {output} is the input file, which would be overwritten; name another file")
    for path in working_files:
        if path.resolve() in resolved:
            message = f"--output {output} is written by way of {path}, which is an input file; name another file"
            raise RunError(message)


def is_journal_format(output: Path) -> bool:
    """Whether the output is JSON Lines as they are, so that the journal of rows becomes the output by a new name."""
    return output.suffix.lower() in LINES


def max_num_columns(output: Path) -> int:
    """The most different columns that rows written to `output` may have."""
    return MAX_COLUMNS if data_suffix(output) in (*TABLES, ".parquet") else sys.maxsize


def convert(journal: Path, output: Path, last_columns: Sequence[str]) -> list[str]:
    """Writes the rows of `journal`, which is JSON Lines, to `output` in the format of its name, part by part.

    last_columns: columns that stand after all others in a table. Returns notes on what was changed. Raises OSError.
    """
    suffix, notes = data_suffix(output), list[str]()
    with atomic_write(output, ".converted") as staging:
        if suffix == ".parquet":
            notes = _write_parquet(journal, staging, last_columns)
        else:
            with _open_text(staging, output.suffix.lower()) as text:
                if suffix in TABLES:
                    _write_table(journal, text, TABLES[suffix], last_columns)
                elif suffix == ".json":
                    _write_array(journal, text)
                else:
                    text.writelines(_lines(journal))
        with staging.open("rb") as file:
            os.fsync(file.fileno())
    return notes


@contextmanager
def _open_text(path: Path, suffix: str) -> Iterator[IO[str]]:
    """A writer of UTF-8, compressed if `suffix` is that of a compression. The same text gives the same bytes."""
    with (
        path.open("wb") as file,
        io.TextIOWrapper(_compressor(file, suffix), encoding="utf-8", newline="") as text,
    ):
        yield text


def _compressor(file: IO[bytes], suffix: str) -> Any:
    """A stream that compresses into `file`, or `file` itself."""
    if suffix == ".gz":
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
    if suffix == ".bz2":
        return bz2.open(file, "wb")
    if suffix == ".xz":
        return lzma.open(file, "wb")
    if suffix == ".zst":
        return io.BufferedWriter(pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd"))
    return file


def _lines(journal: Path) -> Iterator[str]:
    """The lines of the journal. An unpaired surrogate, which the journal escapes, is replaced by U+FFFD."""
    with journal.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield _ESCAPED_SURROGATE.sub("\\1\ufffd", line) if "\\ud" in line else line


def _rows(journal: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, _lines(journal))


def _write_array(journal: Path, text: IO[str]) -> None:
    start = "["
    for line in _lines(journal):
        text.write(f"{start}\n{line.removesuffix('\n')}")
        start = ","
    text.write("\n]\n")


def _write_table(journal: Path, text: IO[str], delimiter: str, last_columns: Sequence[str]) -> None:
    columns: dict[str, None] = {}
    for row in _rows(journal):
        columns |= dict.fromkeys(row)
    names = _ordered(columns, last_columns)
    writer = csv.writer(text, delimiter=delimiter)  # lines end in CR LF, so that a cell with one of them is quoted
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in _rows(journal))


def _cell(value: Any) -> str:
    """A text as it is, nothing for null, and other values as JSON."""
    return value if isinstance(value, str) else "" if value is None else dump(value)


def _write_parquet(journal: Path, path: Path, last_columns: Sequence[str]) -> list[str]:
    types = ColumnTypes()
    for row in _rows(journal):
        types.add(row)
    names = _ordered(types.columns, last_columns)
    schema = pa.schema([(name, types.arrow_type(name)) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in batched(_rows(journal), ROW_GROUP_SIZE):
            arrays = [
                pa.array([types.convert(name, row.get(name)) for row in rows], schema.field(name).type)
                for name in names
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return types.notes()


def _ordered(columns: Iterable[str], last_columns: Sequence[str]) -> list[str]:
    columns = list(columns)
    return [name for name in columns if name not in last_columns] + [name for name in last_columns if name in columns]
