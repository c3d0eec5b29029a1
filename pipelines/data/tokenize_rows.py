"""Tokenization: turns examples into tokens and stores them on disk, in a format that training maps into memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.prompt_format import EncodedExample, PromptFormat
from pipelines.data.readers import RowErrors
from pipelines.data.splits import SPLITS
from pipelines.registry import lazy_import
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.config.job import Job
else:  # 0.3 s that `check` does not need
    pa = lazy_import("pyarrow")

FEW_SHOT = "few_shot"
"""The name of the file with the training rows that may become examples in a prompt."""
TOKENIZE_BATCH_SIZE = 1024
"""Rows that are tokenized and written together."""


@dataclass(frozen=True)
class TokenizedExample(EncodedExample):
    """The tokens of `example`."""

    example: Example


def tokenize_examples(
    examples: Iterable[Example], prompt_format: PromptFormat, errors: RowErrors | None = None
) -> Iterator[TokenizedExample]:
    """Yields each example with its tokens, in the same order.

    Raises DataError after the last one, with every row whose conversation the chat template refuses; with `errors`,
    adds them to it instead.
    """
    refused = RowErrors() if errors is None else errors
    for batch in batched(examples, TOKENIZE_BATCH_SIZE):
        for example, encoded in zip(batch, _encode_batch(batch, prompt_format, refused), strict=True):
            if encoded is not None:
                yield TokenizedExample(encoded.input_ids, encoded.supervised_spans, example)
    if errors is None:
        refused.raise_if_any()


def _encode_batch(
    batch: Sequence[Example], prompt_format: PromptFormat, errors: RowErrors
) -> Sequence[EncodedExample | None]:
    """The tokens of each example; None, and an entry in `errors`, for one that the chat template refuses."""
    encoded: list[EncodedExample | None] = []
    outcomes = prompt_format.encode_each([example.conversation for example in batch])
    for example, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, ChatTemplateError):
            task = f"task {example.task}: " if example.task else ""
            errors.add(example.file, example.row_number, f"{task}{outcome}")
            encoded.append(None)
        else:
            encoded.append(outcome)
    return encoded


def write_splits(rows: Iterable[TokenizedExample], folder: Path) -> None:
    """Writes `folder`/{train,validation,test}.arrow with the columns task, file, row, input_ids and supervised_spans.

    The test split, whose rows the report shows, also has prompt, completion, reasoning and fields (as JSON); and so has
    few_shot.arrow, which holds the training rows that may become examples in a prompt, with their rank. The files
    appear under these names only after every row has been written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial_paths = {split: folder / f"{split}.arrow.partial" for split in (*SPLITS, FEW_SHOT)}
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(_SplitWriter(path, split)) for split, path in partial_paths.items()}
        for row in rows:
            writers[row.example.split].add(row)
            if row.example.rank is not None:
                writers[FEW_SHOT].add(row)
    for split, path in partial_paths.items():
        path.replace(folder / f"{split}.arrow")


class _SplitWriter:
    """Writes an Arrow file in batches of TOKENIZE_BATCH_SIZE rows. An exception in the block removes the file."""

    def __init__(self, path: Path, split: str) -> None:
        names = ("prompt", "completion", "system", "reasoning", "turns", "fields")
        texts = [(name, pa.string()) for name in names] if split in ("test", FEW_SHOT) else []
        texts += [("rank", pa.int64())] if split == FEW_SHOT else []
        tokens = [("input_ids", pa.list_(pa.int32())), ("supervised_spans", pa.list_(pa.list_(pa.int32(), 2)))]
        source = [("task", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("turn", pa.int64())]
        self.schema = pa.schema([*source, *tokens, *texts])
        self.path = path
        self.batch: list[dict[str, Any]] = []

    def __enter__(self) -> _SplitWriter:
        self.file = pa.ipc.new_file(self.path, self.schema)
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if not exception:
            self._flush()
        self.file.close()
        if exception:
            self.path.unlink()

    def add(self, row: TokenizedExample) -> None:
        example = row.example
        self.batch.append(
            {
                "task": example.task,
                "file": example.file,
                "row": example.row_number,
                "input_ids": row.input_ids,
                "supervised_spans": row.supervised_spans,
                "prompt": example.prompt,
                "completion": example.completion,
                "system": example.system,
                "reasoning": example.reasoning,
                "turn": example.turn,
                "turns": None if example.turns is None else example.turns.to_json(),
                "fields": example.fields,
                "rank": example.rank,
            }
        )
        if len(self.batch) == TOKENIZE_BATCH_SIZE:
            self._flush()

    def _flush(self) -> None:
        columns = []
        for field in self.schema:
            values = [row[field.name] for row in self.batch]
            if field.name == "fields":
                values = [dump(value) for value in values]
            columns.append(pa.array(values, field.type))
        self.file.write_batch(pa.record_batch(columns, schema=self.schema))
        self.batch = []


def open_split(folder: Path, split: str) -> pa.Table:
    """One split of the tokenized examples, mapped into memory. The columns are those of `write_splits`."""
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def read_test_examples(folder: Path, job: Job) -> list[TokenizedExample]:
    """The tokenized examples of the test split, with the limits that the job's config gives them."""
    return _read_examples(folder, "test", "test", job)


def read_few_shot_candidates(folder: Path, job: Job) -> list[TokenizedExample]:
    """The training rows that may become examples in a prompt, sorted by their rank."""
    return sorted(_read_examples(folder, FEW_SHOT, "train", job), key=lambda row: row.example.rank or 0)


def _read_examples(folder: Path, file: str, split: str, job: Job) -> list[TokenizedExample]:
    return [
        TokenizedExample(
            row["input_ids"],
            [(start, end) for start, end in row["supervised_spans"]],
            Example(
                task=row["task"],
                split=split,
                file=row["file"],
                row_number=row["row"],
                system=row["system"],
                turn=row["turn"],
                turns=None if row["turns"] is None else Conversation.from_json(row["turns"]),
                prompt=row["prompt"],
                completion=row["completion"],
                reasoning=row["reasoning"],
                fields=json.loads(row["fields"]),
                max_new_tokens=job.completion_limit(row["task"], with_reasoning=row["reasoning"] is not None),
                template_kwargs=job.chat_template_kwargs(row["task"]),
                rank=row.get("rank"),
            ),
        )
        for row in open_split(folder, file).to_pylist()
    ]
