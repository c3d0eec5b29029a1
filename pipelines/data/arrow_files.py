"""Folders that `datasets.save_to_disk` has written: rows in Arrow files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.parquet import json_columns
from pipelines.data.text_files import NumberedRows
from pipelines.errors import DataError, Problem
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import pyarrow as pa
else:  # most jobs have no such folder
    pa = lazy_import("pyarrow")

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"


def is_saved_dataset(path: Path) -> bool:
    """Whether the folder holds one dataset (not a dictionary of splits)."""
    return (path / STATE_FILE).is_file()


def saved_splits(path: Path) -> list[str]:
    """The names of the splits in a folder that a DatasetDict was saved to; empty for another folder."""
    file = path / SPLITS_FILE
    return [str(name) for name in _read_object(file).get("splits", [])] if file.is_file() else []


def saved_files(path: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in order. Raises DataError if the folder is not complete."""
    state = _read_object(path / STATE_FILE)
    names = [entry.get("filename") for entry in state.get("_data_files", []) if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(Problem("names no data files; save the dataset again", str(path / STATE_FILE)))
    if state.get("_indices_files"):
        raise DataError(Problem("is saved with indices; save it after dataset.flatten_indices()", str(path)))
    return [path / str(name) for name in names]


def read_saved_dataset(path: Path) -> NumberedRows:
    """Yields the rows, each after its index from 1. Raises DataError for a missing or damaged file."""
    index = 0
    for file in saved_files(path):
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
                for batch in batches:
                    for part in range(0, batch.num_rows, 1024):
                        rows = batch.slice(part, 1024)
                        columns = json_columns(rows)
                        for values in zip(*columns, strict=True):
                            index += 1
                            yield index, dict(zip(rows.schema.names, values, strict=True))
        except FileNotFoundError:
            raise DataError(Problem("no such file; the folder of the dataset is not complete", str(file))) from None
        except (pa.ArrowException, OSError) as error:
            cause = " ".join(str(error).split())[:120]
            raise DataError(Problem(f"not a valid Arrow file from row {index + 1} on ({cause})", str(file))) from None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(Problem("is not JSON; save the dataset again", str(file))) from None
    return value if isinstance(value, dict) else {}
