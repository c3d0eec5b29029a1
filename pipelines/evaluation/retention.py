"""Guards: what the base could do and the tuned model must still do, item by item.

choices  Multiple choice, by the log-likelihood of each choice divided by its length in characters (as in
         EleutherAI's evaluation harness, acc_norm); 100 where the right one is likeliest, else 0.
text     Loss on neutral text, in nats per token; a row is a document.
answers  KL(base ‖ tuned) per token on the base's own greedy answers, in nats; 0 for the base.
task     Completions scored by a metric, as the job's own tasks are; also the tasks of the runs that the job goes on from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from pipelines.config.forgetting import Forgetting
from pipelines.console.activity import doing
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError, Problem
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.general_text import encode_answers, encode_passages, generate_general_answers
from pipelines.evaluation.retention_files import (
    Choice,
    Question,
    read_multiple_choice,
    read_task_examples,
    resolve_data_file,
    retention_eval_configs,
)
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import sequence_losses, supervised_logits
from pipelines.modeling.token_sequences import TokenSequences, micro_batches
from pipelines.scoring.metric import resolve
from pipelines.storage.records import RetentionRecord

MICRO_BATCH = 8

BaseLogits = Callable[[TokenSequences], torch.Tensor]
"""What the base predicts at the supervised tokens of rows: [rows.supervised_tokens, vocabulary]."""


@dataclass(frozen=True)
class PreparedRetentionEval:
    """A guard's rows; as tokens, `rows` are documents or base answers, `question_rows` each question with each of its choices."""

    name: str
    kind: str
    file: str
    rows: TokenSequences = field(default_factory=lambda: TokenSequences([], []))
    choices: Sequence[Choice] = ()
    question_rows: Sequence[TokenSequences] = ()
    questions: Sequence[Question] = ()
    metric: str = ""
    own_scores: Sequence[float | None] = ()
    """An earlier run's task: the score of each item right behind that run, for BWT."""

    @property
    def higher_is_better(self) -> bool:
        return self.kind == "multiple_choice" or (self.kind == "task" and resolve(self.metric).higher_is_better)

    def parts(self, items: int) -> Iterator[PreparedRetentionEval]:
        """The guard in pieces of so many items, in order, for several to score."""
        for start in range(0, max(len(self.rows), len(self.choices), len(self.questions)), items):
            piece = slice(start, start + items)
            yield replace(
                self,
                rows=self.rows[piece],
                choices=self.choices[piece],
                question_rows=self.question_rows[piece],
                questions=self.questions[piece],
            )


def prepare_retention_evals(
    forgetting: Forgetting, load: Callable[[], LoadedModel], prompts: PromptFormat, model_id: str, system: str | None
) -> list[PreparedRetentionEval]:
    """The guards of the config as tokens; `answers` asks the base, which `load` gives, once for a model."""
    prepared = []
    for name, guard in retention_eval_configs(forgetting).items():
        file = resolve_data_file(guard)
        match guard.kind:
            case "multiple_choice":
                items = read_multiple_choice(file)[: guard.limit]
                rows = _question_rows(prompts, items, file)
                prepared.append(PreparedRetentionEval(name, guard.kind, guard.data, choices=items, question_rows=rows))
            case "text_nll":
                prepared.append(
                    PreparedRetentionEval(name, guard.kind, guard.data, encode_passages(prompts, file, guard.limit))
                )
            case "kl":
                answers = generate_general_answers(load, prompts, model_id, file, system, guard.limit)
                prepared.append(
                    PreparedRetentionEval(name, guard.kind, guard.data, encode_answers(prompts, answers, system))
                )
            case "task":
                questions = read_task_examples(guard)[: guard.limit]
                prepared.append(
                    PreparedRetentionEval(name, guard.kind, guard.data, questions=questions, metric=guard.metric)
                )
    return prepared


def _question_rows(prompts: PromptFormat, items: Sequence[Choice], file: Path) -> list[TokenSequences]:
    """Plain text, since a choice is scored as a continuation: "Question: …\nAnswer: choice". Raises DataError."""
    found = []
    for number, item in enumerate(items, start=1):
        texts = [
            f"Question: {item.question}\nAnswer:",
            *(f"Question: {item.question}\nAnswer: {one}" for one in item.choices),
        ]
        question, *wholes = (prompts.encode_text(text) for text in texts)
        if (longest := max(map(len, wholes))) > prompts.context_length:
            message = f"has {longest:,} tokens, this model's context holds {prompts.context_length:,}; shorten or drop the row"
            raise DataError(Problem(message, str(file), number))
        shared = len(os.path.commonprefix([question, *wholes]))
        found.append(
            TokenSequences.from_completion_starts([np.asarray(whole) for whole in wholes], [shared] * len(wholes))
        )
    return found


def score_retention_eval(
    loaded: LoadedModel, guard: PreparedRetentionEval, base_logits: BaseLogits
) -> list[float | None]:
    """A score for each item: nats per token for text and answers, the metric's for a task (None where it can give
    none), 100 or 0 for choices."""
    with doing(f"guard {guard.name}"):
        return _scores(loaded, guard, base_logits)


def _scores(loaded: LoadedModel, guard: PreparedRetentionEval, base_logits: BaseLogits) -> list[float | None]:
    match guard.kind:
        case "kl":
            return list(_divergences(loaded.model, guard.rows, base_logits))
        case "text_nll":
            return list(sequence_losses(loaded.model, guard.rows))
        case "task":
            return _task_scores(loaded, guard)
        case _:
            return list(_choice_scores(loaded.model, guard))


def _choice_scores(model: torch.nn.Module, guard: PreparedRetentionEval) -> Iterator[float]:
    rows = TokenSequences.concatenate(*guard.question_rows)
    summed = [mean * length for mean, length in zip(sequence_losses(model, rows), rows.supervised_lengths, strict=True)]
    losses = iter(summed)
    for item in guard.choices:
        likely = [-next(losses) / len(choice) for choice in item.choices]
        yield 100.0 if int(np.argmax(likely)) == item.answer else 0.0


def _task_scores(loaded: LoadedModel, guard: PreparedRetentionEval) -> list[float | None]:
    metric = resolve(guard.metric)
    texts = [loaded.prompt_format.render_prompt(question.prompt, question.system) for question in guard.questions]
    bounds = [question.max_new_tokens for question in guard.questions]
    answers = complete(
        loaded, [loaded.prompt_format.encode_prompt(text) for text in texts], {"do_sample": False}, bounds
    )
    lines = [
        {
            "task": guard.name,
            "row": row,
            "reference": question.reference,
            "completion": answer.text,
            "fields": question.fields,
        }
        for row, (question, answer) in enumerate(zip(guard.questions, answers, strict=True), start=1)
    ]
    return [metric.score(line).value for line in lines]


def _divergences(model: torch.nn.Module, rows: TokenSequences, base_logits: BaseLogits) -> Iterator[float]:
    for part in micro_batches(rows, MICRO_BATCH):
        with torch.no_grad():
            logits, _ = supervised_logits(model, part)
            each = kl_divergence(base_logits(part), logits)
        for row in each.split(part.supervised_lengths):
            yield float(row.double().mean())


def retention_records(guard: PreparedRetentionEval, scores: Sequence[float | None]) -> list[RetentionRecord]:
    """The records of the items, in their order."""
    chances = [100 / len(item.choices) for item in guard.choices]
    return [
        RetentionRecord(
            eval=guard.name,
            kind=guard.kind,
            metric=guard.metric,
            item=number,
            score=score,
            chance_accuracy=chance,
            score_after_own_task=own_score,
        )
        for number, (score, chance, own_score) in enumerate(zip_longest(scores, chances, guard.own_scores), start=1)
    ]


def mean_scores(
    loaded: LoadedModel, guards: Sequence[PreparedRetentionEval], base_logits: BaseLogits
) -> dict[str, float]:
    """Each guard's mean over the items that could be scored; a guard without one is left out."""
    scores = {guard.name: score_retention_eval(loaded, guard, base_logits) for guard in guards}
    known = {name: [one for one in found if one is not None] for name, found in scores.items()}
    return {name: float(np.mean(found)) for name, found in known.items() if found}
