"""What an export is made of: a finished run, the model that it started from, and its test prompts."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.data.conversation import Message
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample, read_test_examples
from pipelines.errors import RunError
from pipelines.forgetting.continual import existing_starting_model
from pipelines.modeling.base_models import TRAINING_FILE
from pipelines.modeling.base_reference import BaseModelReference, base_model_reference
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.model_folder import read_config
from pipelines.prediction.models import tuned_job
from pipelines.storage.records import CompletionRecord, Manifest, read_records
from pipelines.storage.run_folder import Run

DEFAULT_ROWS_PER_TASK = 32
"""Test rows per task that an export is asked."""
SAMPLE_SEED = 0


@dataclass(frozen=True)
class EvaluatedPrompt:
    """A test row as the run was prompted with it, and the answer of its tuned model.

    Attributes:
        messages: the turns before the answer, without the chat template.
        variables: the variables of the chat template besides the messages.
        text: the rendered prompt, without a BOS that the tokenizer adds.
        ids: the tokens of the prompt.
        limit: the limit of the completion in tokens.
        answer: the completion that the run has stored.
        reference_ids: the tokens of the reference with its end token.
    """

    task: str
    row: int
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]
    text: str
    ids: Sequence[int]
    limit: int
    answer: CompletionRecord
    reference_ids: Sequence[int] = ()


@dataclass(frozen=True)
class ExportSource:
    """A finished run. Loads no model.

    Attributes:
        starting_model: the folder of the model that training started from.
    """

    run: Run
    job: Job
    manifest: Manifest
    starting_model: Path
    prompt_format: PromptFormat

    @property
    def model(self) -> Path:
        """The folder of the tuned model: an adapter, or all weights."""
        return self.run.path("model")

    @property
    def has_adapter(self) -> bool:
        return (self.model / "adapter_config.json").is_file()

    @property
    def base_dtype(self) -> str:
        """The dtype of the base's weights, as its config names it."""
        config = read_config(self.starting_model)
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        return dtype if dtype in ("float32", "bfloat16", "float16") else "float32"

    @cached_property
    def base(self) -> BaseModelReference:
        return base_model_reference(self.job, self.starting_model, fingerprint(self.starting_model))

    @cached_property
    def model_fingerprint(self) -> str:
        """The fingerprint of the tuned model and of what its export depends on besides."""
        return fingerprint(self.model)

    @cached_property
    def test_rows(self) -> list[tuple[TokenizedExample, CompletionRecord]]:
        """All test rows with the answers of the tuned model. Raises RunError if the two do not belong together."""
        rows = read_test_examples(self.run.path("data"), self.job)
        answers = read_records(self.run.path("tuned", "completions.jsonl"), CompletionRecord)
        keys = [(row.example.task, row.example.row_number) for row in rows]
        if keys != [(answer.task, answer.row) for answer in answers]:
            raise RunError(f"{self.run.folder}: its completions are not those of its test rows; run the job again")
        return list(zip(rows, answers, strict=True))

    def prompts(self, rows_per_task: int | None = DEFAULT_ROWS_PER_TASK) -> list[EvaluatedPrompt]:
        """A sample of the test rows of each task, always the same; all of them with None."""
        by_task: dict[str, list[tuple[TokenizedExample, CompletionRecord]]] = defaultdict(list)
        for row, answer in self.test_rows:
            by_task[row.example.task].append((row, answer))
        prompts = []
        for task_rows in by_task.values():
            indices = range(len(task_rows))
            if rows_per_task is not None and rows_per_task < len(task_rows):
                indices = sorted(random.Random(SAMPLE_SEED).sample(indices, rows_per_task))  # type: ignore[assignment]
            prompts += [self._evaluated_prompt(*task_rows[index]) for index in indices]
        return prompts

    def _evaluated_prompt(self, row: TokenizedExample, answer: CompletionRecord) -> EvaluatedPrompt:
        conversation = row.example.conversation
        end = conversation.supervised_turns[-1] if conversation.supervised_turns else len(conversation.messages)
        messages, variables = conversation.messages[:end], {}
        if self.prompt_format.template is not None:
            own = self.prompt_format.template.variables
            given = {**own, **self.prompt_format.renderer.template_variables(conversation)}
            names = self.prompt_format.template.variable_names
            special = self.prompt_format.tokenizer.special_tokens_map
            variables = {
                name: value
                for name, value in given.items()
                if name in names and not (name in special and special[name] == value)
            }
        limit = row.example.max_new_tokens or 0
        return EvaluatedPrompt(
            task=row.example.task,
            row=row.example.row_number,
            messages=messages,
            tools=conversation.tools,
            variables=variables,
            text=self.prompt_format.render_prompt(conversation).rstrip(" "),
            ids=row.prompt_ids,
            limit=min(limit, self.prompt_format.context_length - len(row.prompt_ids)),
            answer=answer,
            reference_ids=row.completion_ids,
        )


def open_source(folder: Path) -> ExportSource:
    """The finished run in `folder`. Raises RunError for a run that is not finished, or that has no model."""
    run = Run.open(folder)
    if run.manifest.get("models"):
        raise RunError(f"{folder} is a comparison of two models and has no model of its own; name a run")
    job = tuned_job(run)
    if "eval_tuned" not in run.manifest["stages"]:
        raise RunError(f"{folder} is not finished, so that no export could be checked; finish it with: {run.command}")
    if not (run.path("model") / TRAINING_FILE).is_file():
        raise RunError(f"{folder} has no model folder; run the job again: {run.command}")
    starting_model = existing_starting_model(job, run)
    return ExportSource(
        run=run,
        job=job,
        manifest=Manifest.model_validate(run.manifest),
        starting_model=starting_model,
        prompt_format=PromptFormat.from_folder(starting_model, job.chat_template_settings()),
    )
