"""Train/test overlap: test rows whose prompt is also the prompt of a training row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.checks.findings import Finding
from pipelines.data.examples import Example
from pipelines.errors import Problem


@dataclass(frozen=True)
class _TestRow:
    prompt_hash: int
    completion_hash: int
    task: str
    file: str
    row_number: int


class TrainTestOverlap:
    """Finds the test rows whose prompt, ignoring white space, is in the training split of the same task.

    Texts are stored as 8-byte hashes, so that the training split may be larger than memory.
    """

    def __init__(self) -> None:
        self._train_prompts, self._train_completions = array("q"), array("q")
        self._test_rows: list[_TestRow] = []

    def observe(self, example: Example) -> None:
        prompt_hash = hash((example.task, *example.prompt.split()))
        completion_hash = hash(tuple(example.reference.split()))
        if example.split == "train":
            self._train_prompts.append(prompt_hash)
            self._train_completions.append(completion_hash)
        elif example.split == "test":
            self._test_rows.append(
                _TestRow(prompt_hash, completion_hash, example.task, example.file, example.row_number)
            )

    def findings(self) -> Iterator[Finding]:
        """One warning per task, at its first overlapping test row."""
        test_prompts = {row.prompt_hash for row in self._test_rows}
        train_rows = zip(self._train_prompts, self._train_completions, strict=True)
        shared_pairs = {pair for pair in train_rows if pair[0] in test_prompts}
        shared_prompts = {prompt_hash for prompt_hash, _ in shared_pairs}
        overlapping = [row for row in self._test_rows if row.prompt_hash in shared_prompts]
        for task in dict.fromkeys(row.task for row in overlapping):
            rows = [row for row in overlapping if row.task == task]
            conflicting = sum((row.prompt_hash, row.completion_hash) not in shared_pairs for row in rows)
            message = (
                "train/test overlap: the prompt of this test row is also in the training split, so the score would "
            )
            message += "measure memorization" + (f" ({len(rows):,} such rows)" if len(rows) > 1 else "")
            if conflicting:
                message += f"; {conflicting:,} of them have a different completion there, so one of the two is wrong"
            yield Finding("warning", Problem(f"task {task}: {message}", rows[0].file, rows[0].row_number))
