"""The first stage: rows become tokens, once, on disk; what is wrong with them is found before any training second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError, Problem
from pipelines.prompts import PromptFormat
from pipelines.tasks import SPLITS, Example


@dataclass(frozen=True)
class PreparedRow:
    """An example with its prompt as the model sees it (`text`) and its tokens."""

    example: Example
    text: str
    input_ids: list[int]
    supervised_from: int


def prepare_rows(examples: Sequence[Example], prompts: PromptFormat) -> list[PreparedRow]:
    rows = []
    for example in examples:
        text = prompts.prompt_text(example.prompt, example.system)
        encoded = prompts.encode(text, example.completion)
        rows.append(PreparedRow(example, text, encoded.input_ids, encoded.supervised_from))
    return rows


def write_rows(rows: Sequence[PreparedRow], folder: Path) -> None:
    """data/{train,validation,test}.parquet: task, file, row, text, prompt, completion, fields (JSON), tokens."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = pd.DataFrame(
            [
                {
                    "task": row.example.task,
                    "file": row.example.file,
                    "row": row.example.row,
                    "prompt": row.example.prompt,
                    "completion": row.example.completion,
                    "text": row.text,
                    "fields": json.dumps(dict(row.example.fields), ensure_ascii=False, default=str),
                    "input_ids": row.input_ids,
                    "supervised_from": row.supervised_from,
                }
                for row in rows
                if row.example.split == split
            ],
            columns=["task", "file", "row", "prompt", "completion", "text", "fields", "input_ids", "supervised_from"],
        )
        aside = folder / f"{split}.parquet.partial"
        table.to_parquet(aside)
        aside.replace(folder / f"{split}.parquet")


def read_table(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of one split as dicts, `fields` parsed."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / f"{split}.parquet").to_pylist()
    for row in rows:
        row["fields"] = json.loads(row["fields"])
    return rows


def read_probes(path: Path) -> list[dict[str, Any]]:
    """Free prompts: rows with `prompt` and, if wished, `title` and `max_new_tokens`."""
    from pipelines.tasks import read_rows

    probes = read_rows(path)
    for number, probe in enumerate(probes, start=1):
        if not isinstance(probe.get("prompt"), str) or not probe["prompt"].strip():
            raise DataError(Problem("a probe needs a text in `prompt`", str(path), number))
        unknown = set(probe) - {"prompt", "title", "max_new_tokens"}
        if unknown:
            raise DataError(
                Problem(f"unknown key {sorted(unknown)[0]!r}; a probe has prompt, title, max_new_tokens", str(path), number)
            )
    return probes
