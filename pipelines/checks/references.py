"""Whether a perfect answer would get the full score: each reference of a test row is treated as if the model had given it.

It is encoded, cut at `max_new_tokens`, decoded and scored as an answer is. A reference that does not reach the full score
keeps every model from reaching it, and the difference between base and tuned says less than it seems to.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.forgetting import Guard
from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import PreparedRow
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.evaluation.completions import decode_completion
from pipelines.evaluation.retention_files import Question
from pipelines.scoring.metric import Metric, metric_key, resolve

MAX_SCORED = 1000
"""Rows of a task whose references are scored; of more rows only the tokens are looked at. Tests of code take the time."""


@dataclass(frozen=True)
class Shortfall:
    """Why a reference does not reach the full score.

    `kind`: length, special_tokens, decoding, or score where its text comes back whole and scores less than full.
    """

    kind: str
    cause: str
    needed_tokens: int = 0


def shortfall(
    metric: Metric, prompts: PromptFormat, line: Mapping[str, Any], ids: Sequence[int], bound: int, scored: bool
) -> Shortfall | None:
    """None where the reference of `line` (task, row, reference, fields) reaches the full score as an answer.

    `ids`: the reference's tokens with the end token; `bound`: max_new_tokens. Without `scored` only its text is compared.
    """
    text, _ = decode_completion(prompts, list(ids[:bound]))
    reference = line["reference"]
    if text == reference and not scored:
        return None
    if scored:
        score, detail = _score(metric, line, text)
        full = 100.0 if ":" not in metric.name else _score(metric, line, reference)[0]
        if score is not None and full is not None and score >= full - 1e-6:
            return None
        if text == reference:
            shown = "no score" if score is None else f"{score:g} of 100"
            return Shortfall("score", f"gets {shown} as its own answer" + (f": {detail}" if detail else ""))
    return _lost_text(prompts, ids, bound, reference, text)


def _lost_text(prompts: PromptFormat, ids: Sequence[int], bound: int, reference: str, text: str) -> Shortfall:
    if len(ids) > bound:
        return Shortfall("length", f"is longer than max_new_tokens {bound}, where an answer is cut", len(ids))
    special = [token for token in prompts.tokenizer.all_special_tokens if token in reference]
    if special:
        named = ", ".join(special[:3])
        return Shortfall(
            "special_tokens", f"holds special tokens ({named}), which an answer is read without; take them out"
        )
    return Shortfall(
        "decoding", f"is read back from its tokens as {text[:40]!r}: this model's tokenizer cannot write it"
    )


def _score(metric: Metric, line: Mapping[str, Any], completion: str) -> tuple[float | None, str]:
    try:
        score = metric.score({**line, "completion": completion})
    except DataError as error:
        return None, str(error)
    return score.value, score.detail


@dataclass
class _Count:
    """The rows of a task that fall short for one kind of cause."""

    first: Shortfall
    file: str
    row: int
    rows: int = 0
    needed_tokens: int = 0


class ReferenceChecks:
    """Sees the prepared rows in passing and counts the references that fall short, by task (or guard) and kind of cause."""

    def __init__(self, job: Job, prompts: PromptFormat, context_length: int) -> None:
        self.job, self.prompts, self.context_length = job, prompts, context_length
        self.rows: Counter[str] = Counter()
        self.counts: dict[str, dict[str, _Count]] = {}
        self.metrics: dict[str, Metric] = {}
        for name, task in job.pipeline.tasks.items():
            # A metric of the user's that cannot be imported is a finding of its own.
            with contextlib.suppress(ConfigError):
                self.metrics[f"task {name}"] = resolve(metric_key(task.metric, task.normalize))

    def see(self, row: PreparedRow) -> None:
        """Looks at the reference of a test row."""
        example = row.example
        if example.split == "test":
            line = {"task": example.task, "row": example.row, "reference": example.completion, "fields": example.fields}
            bound = min(self._max_new_tokens(example.task), self.context_length - row.supervised_from)
            self._look(f"task {example.task}", line, row.input_ids[row.supervised_from :], bound, example.file)

    def see_guard(self, name: str, guard: Guard, questions: Sequence[Question]) -> None:
        """Looks at the references of a guard of kind task."""
        with contextlib.suppress(ConfigError):
            self.metrics[f"guard {name}"] = resolve(guard.metric)
        for number, question in enumerate(questions, start=1):
            text = self.prompts.prompt_text(question.prompt, question.system)
            encoded = self.prompts.encode(text, question.reference)
            line = {"task": name, "row": number, "reference": question.reference, "fields": question.fields}
            bound = min(question.max_new_tokens, self.context_length - encoded.supervised_from)
            self._look(f"guard {name}", line, encoded.supervised, bound, guard.data)

    def _look(self, whose: str, line: Mapping[str, Any], ids: Sequence[int], bound: int, file: str) -> None:
        metric = self.metrics.get(whose)
        if metric is None or not metric.scores_completions:
            return
        self.rows[whose] += 1
        found = shortfall(metric, self.prompts, line, ids, bound, self.rows[whose] <= MAX_SCORED)
        if found is not None:
            count = self.counts.setdefault(whose, {}).setdefault(found.kind, _Count(found, file, line["row"]))
            count.rows += 1
            count.needed_tokens = max(count.needed_tokens, found.needed_tokens)

    def _max_new_tokens(self, task: str) -> int:
        own = self.job.pipeline.tasks[task].max_new_tokens
        return int(own if own is not None else self.job.ludwig["generation"]["max_new_tokens"])

    def findings(self) -> Iterator[tuple[bool, Problem]]:
        """Each kind of cause with its first row. It is serious where no reference of the task reaches the full score, and
        where a score that is 0 or 100 is lost for certain, whatever the model answers."""
        for whose, counts in self.counts.items():
            none_reaches = sum(count.rows for count in counts.values()) == self.rows[whose]
            for kind, count in counts.items():
                advice = f": write max_new_tokens: {count.needed_tokens}" if kind == "length" else ""
                rows = "test rows" if whose.startswith("task ") else "rows"
                share = f"({count.rows:,} of {self.rows[whose]:,} {rows})"
                message = f"{whose}: the reference {count.first.cause}{advice} {share}"
                serious = none_reaches or (kind != "score" and self.metrics[whose].binary)
                yield serious, Problem(message, count.file, count.row)
