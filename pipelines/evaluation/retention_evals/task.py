"""Retention eval `task`: completions of rows with a reference, scored by a metric as those of the job's own tasks are.

The tasks of the runs that a job continues from are also evals of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from pipelines.config.base import Count, Text
from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.data.examples import Example
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.templates import fill_nonempty, fill_system
from pipelines.data.tokenize_rows import TokenizedExample, tokenize_examples
from pipelines.errors import DataError, Problem
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.retention import (
    Measure,
    PreparationContext,
    PreparedRetentionEval,
    ReferenceLogits,
    RetentionEval,
)
from pipelines.scoring.custom_metrics import try_metric
from pipelines.scoring.metric import check_row, metric_from_key


class TaskEval(RetentionEval):
    """The score of `metric`; an item is a row whose columns fill `prompt` and `completion`."""

    list_order = 3

    prompt: Text = Field(description="Template of the prompt, as for a task.")
    completion: Text = Field(description="Template of the reference, as for a task.")
    metric: Text = Field(default="rouge", description="Metric that scores the completions, as for a task.")
    system: str | None = Field(default=None, description="System prompt; without one there is none.")
    max_new_tokens: Count = Field(default=64, description="Limit on the tokens of an answer.")
    max_reasoning_tokens: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Limit on the tokens of the thought before an answer, added to `max_new_tokens`."
    )

    @property
    def templates(self) -> dict[str, str]:
        return {"prompt": self.prompt, "completion": self.completion}

    @property
    def metric_name(self) -> str:
        return self.metric

    @classmethod
    def measure(cls, metric: str) -> Measure:
        resolved = metric_from_key(metric)
        return Measure(
            resolved.title, resolved.unit, binary=resolved.binary, higher_is_better=resolved.higher_is_better
        )

    def check(self, name: str) -> None:
        """Raises DataError also for a custom metric that fails on the reference of the first row."""
        first = self._all_examples(name)[0]
        if ":" in self.metric and (failure := try_metric(self.metric, first.completion or "", first.fields)):
            raise DataError(Problem(f"retention eval {name}: {failure}", self.data, 1))

    def examples(self, name: str) -> list[Example]:
        return self._all_examples(name)[: self.limit]

    def _all_examples(self, name: str) -> list[Example]:
        """All rows, also those beyond `limit`. Raises DataError with every row that cannot be used."""
        examples, errors = [], RowErrors()
        for number, row in numbered_rows(self.file):
            try:
                prompt, completion = (fill_nonempty(text, row, key) for key, text in self.templates.items())
                check_row(self.metric, row)
            except DataError as error:
                errors.add(self.data, number, str(error))
                continue
            examples.append(
                Example(
                    prompt=prompt,
                    completion=completion,
                    system=None if self.system is None else fill_system(self.system, row),
                    task=name,
                    file=self.data,
                    row_number=number,
                    fields=row,
                    max_new_tokens=self.max_new_tokens + self.max_reasoning_tokens,
                )
            )
        errors.raise_if_any()
        return examples

    def prepare(self, name: str, context: PreparationContext) -> list[TokenizedExample]:
        return list(tokenize_examples(self.examples(name), context.prompt_format))

    @classmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
    ) -> Sequence[float | None]:
        metric = metric_from_key(prepared.metric)
        rows: Sequence[TokenizedExample] = prepared.items
        examples, prompts = [row.example for row in rows], [row.prompt_ids for row in rows]
        limits = [example.max_new_tokens or 0 for example in examples]
        completions = complete(loaded, prompts, {"do_sample": False}, limits)
        return [
            metric.score(
                {
                    "task": prepared.name,
                    "row": item,
                    "reference": example.completion,
                    "completion": completion.text,
                    "fields": example.fields,
                }
            ).value
            for item, (example, completion) in enumerate(zip(examples, completions, strict=True), start=1)
        ]


RETENTION_EVAL_KINDS.register("task", TaskEval)
