"""Retention eval `multiple_choice`: accuracy on questions with several choices.

The choice with the highest log-likelihood per character is the model's answer (acc_norm of EleutherAI's LM Evaluation
Harness).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import numbered_rows
from pipelines.errors import DataError, Problem
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import (
    Measure,
    PreparationContext,
    PreparedRetentionEval,
    ReferenceLogits,
    RetentionEval,
)
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.registry import lazy_import
from pipelines.scoring.metric import Unit

if TYPE_CHECKING:
    import numpy as np

    from pipelines.modeling import packing
else:
    # packing imports torch; numpy is 0.1 s that loading a config does not need.
    np = lazy_import("numpy")
    packing = lazy_import("pipelines.modeling.packing")

Visible = Annotated[str, Field(pattern=r"\S")]


class MultipleChoiceItem(BaseModel):
    """A question with its choices; `answer` is the index of the correct one, from 0."""

    model_config = ConfigDict(strict=True, frozen=True)

    question: Visible
    choices: Annotated[list[Visible], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError("answer is not the index of a choice")
        return self


TokenizedItem = tuple[MultipleChoiceItem, TokenSequences]
"""An item and one sequence per choice: the question followed by the choice, which is supervised."""


class MultipleChoice(RetentionEval):
    """Accuracy: 100 if the answer is correct, else 0; an item is a row with `question`, `choices` and `answer`."""

    bundled = {"knowledge": "retention/choices.jsonl"}
    list_order = 0

    @classmethod
    def measure(cls, metric: str) -> Measure:
        return Measure("multiple choice", Unit.PERCENT, binary=True, higher_is_better=True)

    def check(self, name: str) -> None:
        read_multiple_choice(self.file)

    def prepare(self, name: str, context: PreparationContext) -> list[TokenizedItem]:
        items = read_multiple_choice(self.file)[: self.limit]
        return list(zip(items, _tokenize(context.prompt_format, items, self.file), strict=True))

    @classmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
    ) -> Sequence[float | None]:
        items: Sequence[TokenizedItem] = prepared.items
        sequences = TokenSequences.concatenate(*(choices for _, choices in items))
        means = packing.sequence_mean_losses(loaded.model, sequences)
        nlls = iter([mean * length for mean, length in zip(means, sequences.supervised_lengths, strict=True)])
        scores: list[float | None] = []
        for item, _ in items:
            log_likelihoods = [-next(nlls) / len(choice) for choice in item.choices]
            scores.append(100.0 if int(np.argmax(log_likelihoods)) == item.answer else 0.0)
        return scores

    @classmethod
    def record_fields(cls, prepared: PreparedRetentionEval) -> Sequence[Mapping[str, Any]]:
        return [{"chance_accuracy": 100 / len(item.choices)} for item, _ in prepared.items]


def read_multiple_choice(file: Path) -> list[MultipleChoiceItem]:
    """Reads rows with `question`, `choices` and `answer`, or rows of a public benchmark as they are published.

    Raises DataError for the first row that has another form.
    """
    items = []
    for number, row in numbered_rows(file):
        converted = _convert_benchmark_row(row)
        try:
            items.append(MultipleChoiceItem.model_validate(converted))
        except ValidationError as error:
            raise DataError(Problem(_describe_error(converted, error), str(file), number)) from None
    return items


def _convert_benchmark_row(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of ARC, OpenBookQA, CommonsenseQA, PIQA or HellaSwag; returns any other row unchanged."""
    match row:
        case {"choices": {"text": list(texts), "label": list(labels)}, "answerKey": key}:
            question = row.get("question", row.get("question_stem"))
            return {"question": question, "choices": texts, "answer": labels.index(key) if key in labels else None}
        case {"goal": question, "sol1": first, "sol2": second, "label": label}:
            return {"question": question, "choices": [first, second], "answer": label}
        case {"ctx": question, "endings": list(endings), "label": label}:
            return {"question": question, "choices": endings, "answer": int(label) if str(label).isdecimal() else label}
    return row


def _describe_error(row: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    choices, key = row.get("choices"), first["loc"][0] if first["loc"] else "answer"
    if first["type"] == "missing":
        return f"{key} is missing; a row has question, choices and answer, this one: {', '.join(row)}"
    if key == "answer" and not first["loc"]:
        return f"answer is {row['answer']}, choices has {len(row['choices'])} entries; the first is 0"
    if key == "answer":
        return "answer is the index of the correct entry of choices, counted from 0, as in 0"
    if key == "choices" and isinstance(choices, list) and len(choices) < 2:
        return f"choices needs two texts or more, found {len(choices)}"
    return "choices is a list of texts, none of them empty" if key == "choices" else f"{key} is a text, not empty"


def _tokenize(prompt_format: PromptFormat, items: Sequence[MultipleChoiceItem], file: Path) -> Iterator[TokenSequences]:
    """Yields each item's sequences: the plain text "Question: …\\nAnswer: choice", since a choice is a continuation.

    Raises DataError for an item that is longer than the model's context.
    """
    for number, item in enumerate(items, start=1):
        prompt = f"Question: {item.question}\nAnswer:"
        question, *sequences = (
            prompt_format.encode_text(text) for text in (prompt, *(f"{prompt} {choice}" for choice in item.choices))
        )
        if (longest := max(map(len, sequences))) > prompt_format.context_length:
            message = f"has {longest:,} tokens; the model's context is {prompt_format.context_length:,}"
            raise DataError(Problem(f"{message}; shorten or drop the row", str(file), number))
        shared_prefix = len(os.path.commonprefix([question, *sequences]))
        yield TokenSequences.supervised_from([np.asarray(ids) for ids in sequences], [shared_prefix] * len(sequences))


RETENTION_EVAL_KINDS.register("multiple_choice", MultipleChoice)
