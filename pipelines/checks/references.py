"""Checks that a perfect completion would get the full score: each reference of a test row is scored as a completion.

It is tokenized, cut at `max_new_tokens`, decoded and scored as a generated completion is. If a reference does not reach
the full score, no model can reach it, and the difference between base and tuned is understated.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.checks.findings import Finding
from pipelines.config.job import Job
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.evaluation.completions import decode_completion
from pipelines.evaluation.retention import RetentionEval
from pipelines.scoring.metric import Metric, metric_from_key, metric_key

MAX_SCORED = 1000
"""Rows of a task whose references are scored. Of other rows only the decoded text is compared: unit tests are slow."""


@dataclass(frozen=True)
class Shortfall:
    """Why a reference does not reach the full score.

    Attributes:
        kind: "length", "special_tokens", "decoding", or "score" if the decoded text is correct but scores less.
        cause: the end of a sentence that begins with "the reference".
        needed_tokens: for "length", the tokens of the reference with its reasoning and its end token.
        has_reasoning: whether the row has reasoning before the reference.
    """

    kind: str
    cause: str
    needed_tokens: int = 0
    has_reasoning: bool = False


def find_shortfall(
    metric: Metric, prompt_format: PromptFormat, row: TokenizedExample, max_new_tokens: int, score: bool
) -> Shortfall | None:
    """Returns None if the reference of `row` reaches the full score as a completion of at most `max_new_tokens` tokens.

    Without `score` only the decoded text is compared.
    """
    split, _ = decode_completion(prompt_format, row.prompt_ids, row.completion_ids[:max_new_tokens])
    text = split.answer
    reference = row.example.reference
    if text == reference and not score:
        return None
    if score:
        value, detail = _score(metric, row.example, text)
        full = 100.0 if ":" not in metric.name else _score(metric, row.example, reference)[0]
        if value is not None and full is not None and value >= full - 1e-6:
            return None
        if text == reference:
            shown = "no score" if value is None else f"{value:g} of 100"
            return Shortfall("score", f"gets {shown} as a completion" + (f": {detail}" if detail else ""))
    return _text_shortfall(prompt_format, row, max_new_tokens, text)


def _text_shortfall(prompt_format: PromptFormat, row: TokenizedExample, max_new_tokens: int, text: str) -> Shortfall:
    if len(row.completion_ids) > max_new_tokens:
        has_reasoning = bool(row.example.reasoning)
        cause = f"is longer than max_new_tokens {max_new_tokens}, where a completion is cut"
        if has_reasoning:
            cause = f"with its reasoning is longer than {max_new_tokens} tokens, where a completion is cut"
        return Shortfall("length", cause, len(row.completion_ids), has_reasoning)
    special = [token for token in prompt_format.tokenizer.all_special_tokens if token in row.example.reference]
    if special:
        cause = f"contains special tokens ({', '.join(special[:3])}), which are stripped from completions; remove them"
        return Shortfall("special_tokens", cause)
    cause = f"decodes to {text[:40]!r} after tokenization: this model's tokenizer cannot represent it"
    return Shortfall("decoding", cause)


def _score(metric: Metric, example: Example, completion: str) -> tuple[float | None, str]:
    record = {
        "task": example.task,
        "row": example.row_number,
        "reference": example.reference,
        "completion": completion,
        "fields": example.fields,
    }
    try:
        score = metric.score(record)
    except DataError as error:
        return None, str(error)
    return score.value, score.detail


@dataclass
class _ShortfallCount:
    """The rows of one task or retention eval that fall short for one kind of cause."""

    first: Shortfall
    file: str
    row_number: int
    rows: int = 0
    needed_tokens: int = 0


class ReferenceChecks:
    """Observes tokenized examples and counts the references that fall short, by task (or retention eval) and cause."""

    def __init__(self, job: Job, prompt_format: PromptFormat, context_length: int) -> None:
        self.job, self.prompt_format, self.context_length = job, prompt_format, context_length
        self.rows: Counter[str] = Counter()
        self.counts: dict[str, dict[str, _ShortfallCount]] = {}
        self.metrics: dict[str, Metric] = {}
        for name, task in job.pipeline.tasks.items():
            # MetricChecks reports a custom metric that cannot be imported.
            with contextlib.suppress(ConfigError):
                self.metrics[f"task {name}"] = metric_from_key(metric_key(task.metric, task.normalize))

    def observe(self, row: TokenizedExample) -> None:
        """Checks the reference of a test row of a task."""
        if row.example.split == "test":
            limit = self.job.completion_limit(row.example.task, with_reasoning=row.example.reasoning is not None)
            self._check(f"task {row.example.task}", row, limit)

    def observe_retention_eval(self, name: str, retention_eval: RetentionEval) -> None:
        """Checks the references of a retention eval that scores completions."""
        examples = retention_eval.examples(name)
        if not examples:
            return
        with contextlib.suppress(ConfigError):
            self.metrics[f"retention eval {name}"] = metric_from_key(retention_eval.metric_name)
        for row in tokenize_examples(examples, self.prompt_format):
            self._check(f"retention eval {name}", row, row.example.max_new_tokens or 0)

    def _check(self, owner: str, row: TokenizedExample, max_new_tokens: int) -> None:
        """`owner`: "task NAME" or "retention eval NAME"."""
        metric = self.metrics.get(owner)
        if metric is None or not metric.scores_completions:
            return
        if len(row.prompt_ids) >= self.context_length:
            return  # it is refused for its length
        self.rows[owner] += 1
        should_score = self.rows[owner] <= MAX_SCORED
        max_new_tokens = min(max_new_tokens, self.context_length - len(row.prompt_ids))
        shortfall = find_shortfall(metric, self.prompt_format, row, max_new_tokens, should_score)
        if shortfall is not None:
            first = _ShortfallCount(shortfall, row.example.file, row.example.row_number)
            count = self.counts.setdefault(owner, {}).setdefault(shortfall.kind, first)
            count.rows += 1
            count.needed_tokens = max(count.needed_tokens, shortfall.needed_tokens)

    def findings(self) -> Iterator[Finding]:
        """One finding per kind of cause, at its first row.

        It is an error if no reference of the task reaches the full score, or if the metric is binary and the text is
        lost, so that the row scores 0 for every completion.
        """
        for owner, counts in self.counts.items():
            none_reaches = sum(count.rows for count in counts.values()) == self.rows[owner]
            for kind, count in counts.items():
                advice = self._length_advice(owner, count) if kind == "length" else ""
                rows = "test rows" if owner.startswith("task ") else "rows"
                proportion = f"({count.rows:,} of {self.rows[owner]:,} {rows})"
                problem = Problem(
                    f"{owner}: the reference {count.first.cause}{advice} {proportion}", count.file, count.row_number
                )
                is_error = none_reaches or (kind != "score" and self.metrics[owner].binary)
                yield Finding("error" if is_error else "warning", problem)

    def _length_advice(self, owner: str, count: _ShortfallCount) -> str:
        if not count.first.has_reasoning:
            return f": write max_new_tokens: {count.needed_tokens}"
        answer_tokens = self.job.max_new_tokens(owner.removeprefix("task "))
        return f": write max_reasoning_tokens: {count.needed_tokens - answer_tokens}"
