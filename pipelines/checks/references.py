"""Checks that a perfect completion would get the full score: each reference of a test row is scored as a completion.

It is tokenized, cut at `max_new_tokens`, decoded and scored as a generated completion is. If a reference does not reach
the full score, no model can reach it, and the difference between base and tuned is understated.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.checks.findings import Finding
from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.evaluation.completions import decode_completion
from pipelines.evaluation.retention import RetentionEval
from pipelines.scoring.metric import Metric, metric_key, resolve

MAX_SCORED = 1000
"""Rows of a task whose references are scored. Of other rows only the decoded text is compared: unit tests are slow."""


@dataclass(frozen=True)
class Shortfall:
    """Why a reference does not reach the full score.

    Attributes:
        kind: "length", "special_tokens", "decoding", or "score" if the decoded text is correct but scores less.
        cause: the end of a sentence that begins with "the reference".
        needed_tokens: for "length", the tokens of the reference with its end token.
    """

    kind: str
    cause: str
    needed_tokens: int = 0


def find_shortfall(
    metric: Metric,
    prompts: PromptFormat,
    record: Mapping[str, Any],
    token_ids: Sequence[int],
    max_new_tokens: int,
    score: bool,
) -> Shortfall | None:
    """Returns None if the reference of `record` (task, row, reference, fields) reaches the full score as a completion.

    `token_ids` are the reference's tokens with the end token. Without `score` only the decoded text is compared.
    """
    text, _ = decode_completion(prompts, list(token_ids[:max_new_tokens]))
    reference = record["reference"]
    if text == reference and not score:
        return None
    if score:
        value, detail = _score(metric, record, text)
        full = 100.0 if ":" not in metric.name else _score(metric, record, reference)[0]
        if value is not None and full is not None and value >= full - 1e-6:
            return None
        if text == reference:
            shown = "no score" if value is None else f"{value:g} of 100"
            return Shortfall("score", f"gets {shown} as a completion" + (f": {detail}" if detail else ""))
    return _text_shortfall(prompts, token_ids, max_new_tokens, reference, text)


def _text_shortfall(
    prompts: PromptFormat, token_ids: Sequence[int], max_new_tokens: int, reference: str, text: str
) -> Shortfall:
    if len(token_ids) > max_new_tokens:
        cause = f"is longer than max_new_tokens {max_new_tokens}, where a completion is cut"
        return Shortfall("length", cause, len(token_ids))
    special = [token for token in prompts.tokenizer.all_special_tokens if token in reference]
    if special:
        cause = f"contains special tokens ({', '.join(special[:3])}), which are stripped from completions; remove them"
        return Shortfall("special_tokens", cause)
    cause = f"decodes to {text[:40]!r} after tokenization: this model's tokenizer cannot represent it"
    return Shortfall("decoding", cause)


def _score(metric: Metric, record: Mapping[str, Any], completion: str) -> tuple[float | None, str]:
    try:
        score = metric.score({**record, "completion": completion})
    except DataError as error:
        return None, str(error)
    return score.value, score.detail


@dataclass
class _ShortfallCount:
    """The rows of one task or retention eval that fall short for one kind of cause."""

    first: Shortfall
    file: str
    row: int
    rows: int = 0
    needed_tokens: int = 0


class ReferenceChecks:
    """Observes tokenized examples and counts the references that fall short, by task (or retention eval) and cause."""

    def __init__(self, job: Job, prompts: PromptFormat, context_length: int) -> None:
        self.job, self.prompts, self.context_length = job, prompts, context_length
        self.rows: Counter[str] = Counter()
        self.counts: dict[str, dict[str, _ShortfallCount]] = {}
        self.metrics: dict[str, Metric] = {}
        for name, task in job.pipeline.tasks.items():
            # MetricChecks reports a custom metric that cannot be imported.
            with contextlib.suppress(ConfigError):
                self.metrics[f"task {name}"] = resolve(metric_key(task.metric, task.normalize))

    def observe(self, row: TokenizedExample) -> None:
        """Checks the reference of a test row."""
        example = row.example
        if example.split == "test":
            record = {"task": example.task, "row": example.row, "reference": example.reference}
            record["fields"] = example.fields
            max_new_tokens = min(self.job.max_new_tokens(example.task), self.context_length - len(row.prompt_ids))
            self._check(f"task {example.task}", record, row.completion_ids, max_new_tokens, example.file)

    def observe_retention_eval(self, name: str, retention_eval: RetentionEval) -> None:
        """Checks the references of a retention eval that scores completions."""
        examples = retention_eval.examples(name)
        if not examples:
            return
        with contextlib.suppress(ConfigError):
            self.metrics[f"retention eval {name}"] = resolve(retention_eval.metric_name)
        for example in examples:
            text = self.prompts.render_prompt(example.prompt, example.system)
            encoded = self.prompts.encode(text, example.completion)
            record = {"task": name, "row": example.row, "reference": example.completion, "fields": example.fields}
            max_new_tokens = min(example.max_new_tokens or 0, self.context_length - len(encoded.prompt_ids))
            self._check(f"retention eval {name}", record, encoded.completion_ids, max_new_tokens, example.file)

    def _check(
        self, owner: str, record: Mapping[str, Any], token_ids: Sequence[int], max_new_tokens: int, file: str
    ) -> None:
        """`owner`: "task NAME" or "retention eval NAME"."""
        metric = self.metrics.get(owner)
        if metric is None or not metric.scores_completions:
            return
        self.rows[owner] += 1
        should_score = self.rows[owner] <= MAX_SCORED
        shortfall = find_shortfall(metric, self.prompts, record, token_ids, max_new_tokens, should_score)
        if shortfall is not None:
            first = _ShortfallCount(shortfall, file, record["row"])
            count = self.counts.setdefault(owner, {}).setdefault(shortfall.kind, first)
            count.rows += 1
            count.needed_tokens = max(count.needed_tokens, shortfall.needed_tokens)

    def findings(self) -> Iterator[Finding]:
        """One finding per kind of cause, at its first row.

        It is an error if no reference of the task reaches the full score, or if the metric is binary and the text is
        lost, so that the row scores 0 whatever the model generates.
        """
        for owner, counts in self.counts.items():
            none_reaches = sum(count.rows for count in counts.values()) == self.rows[owner]
            for kind, count in counts.items():
                advice = f": write max_new_tokens: {count.needed_tokens}" if kind == "length" else ""
                rows = "test rows" if owner.startswith("task ") else "rows"
                proportion = f"({count.rows:,} of {self.rows[owner]:,} {rows})"
                problem = Problem(
                    f"{owner}: the reference {count.first.cause}{advice} {proportion}", count.file, count.row
                )
                is_error = none_reaches or (kind != "score" and self.metrics[owner].binary)
                yield Finding("error" if is_error else "warning", problem)
