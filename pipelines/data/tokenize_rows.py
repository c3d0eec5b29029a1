"""The first stage: rows become tokens, once, on disk, in a form that training maps into memory instead of reading."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.splits import SPLITS
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import pyarrow as pa

TOKENIZE_BATCH_SIZE = 1024
"""Rows that are tokenized and written together."""


@dataclass(frozen=True)
class TokenizedExample:
    """An example with its tokens.

    Attributes:
        example: the source of the tokens.
        prompt_text: the prompt in the model's chat template (`PromptFormat.render_prompt`).
        input_ids: the tokens of the prompt, then those of the completion and the end token if there is a completion.
        supervised_from: the index of the first supervised token; the length of `input_ids` without a completion.
    """

    example: Example
    prompt_text: str
    input_ids: list[int]
    supervised_from: int

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens that the model is prompted with."""
        return self.input_ids[: self.supervised_from]

    @property
    def completion_ids(self) -> list[int]:
        """The tokens of the completion with the end token; empty without a completion."""
        return self.input_ids[self.supervised_from :]


def tokenize_examples(examples: Iterable[Example], prompts: PromptFormat) -> Iterator[TokenizedExample]:
    """Yields each example with its tokens, in the same order."""
    for batch in batched(examples, TOKENIZE_BATCH_SIZE):
        texts = [prompts.render_prompt(example.prompt, example.system) for example in batch]
        encodings = prompts.encode_batch(texts, [example.completion for example in batch])
        for example, text, encoded in zip(batch, texts, encodings, strict=True):
            yield TokenizedExample(example, text, encoded.input_ids, encoded.supervised_from)


def write_splits(rows: Iterable[TokenizedExample], folder: Path) -> None:
    """data/{train,validation,test}.arrow: task, file, row, input_ids, supervised_from, and for test rows, which are shown,
    prompt, completion and fields (JSON). Nothing stands under these names unless every row could be written."""
    folder.mkdir(parents=True, exist_ok=True)
    asides = {split: folder / f"{split}.arrow.partial" for split in SPLITS}
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(aside, split)) for split, aside in asides.items()}
        for row in rows:
            writers[row.example.split].add(row)
    for split, aside in asides.items():
        aside.replace(folder / f"{split}.arrow")


class _Writer:
    """An Arrow file that takes rows one at a time and holds no more than `TOKENIZE_BATCH_SIZE` of them. Gone if it is not finished."""

    def __init__(self, path: Path, split: str) -> None:
        import pyarrow as pa

        shown = [(name, pa.string()) for name in ("prompt", "completion", "fields")] if split == "test" else []
        tokens = [("input_ids", pa.list_(pa.int32())), ("supervised_from", pa.int32())]
        self.schema = pa.schema([("task", pa.string()), ("file", pa.string()), ("row", pa.int64()), *tokens, *shown])
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> _Writer:
        import pyarrow as pa

        self.file = pa.ipc.new_file(self.path, self.schema)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if not failed:
            self._flush()
        self.file.close()
        if failed:
            self.path.unlink()

    def add(self, row: TokenizedExample) -> None:
        example = row.example
        self.rows.append(
            {
                "task": example.task,
                "file": example.file,
                "row": example.row,
                "input_ids": row.input_ids,
                "supervised_from": row.supervised_from,
                "prompt": example.prompt,
                "completion": example.completion,
                "fields": example.fields,
            }
        )
        if len(self.rows) == TOKENIZE_BATCH_SIZE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = []
        for field in self.schema:
            values = [row[field.name] for row in self.rows]
            if field.name == "fields":
                values = [dump(value) for value in values]
            columns.append(pa.array(values, field.type))
        self.file.write_batch(pa.record_batch(columns, schema=self.schema))
        self.rows = []


def open_split(folder: Path, split: str) -> pa.Table:
    """One split of the prepared rows, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of one split as dicts, `fields` parsed."""
    rows: list[dict[str, Any]] = open_split(folder, split).to_pylist()
    for row in rows:
        if "fields" in row:
            row["fields"] = json.loads(row["fields"])
    return rows
