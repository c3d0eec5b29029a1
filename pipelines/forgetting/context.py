"""What strategies are built from: the model that a job starts from, general text, and the runs that led to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import open_split
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.data_files import bundled_file
from pipelines.evaluation.general_text import (
    encode_answers,
    encode_passages,
    generate_general_answers,
    load_replay_rows,
)
from pipelines.evaluation.retention import PreparationContext, PreparedRetentionEval, prepare_retention_evals
from pipelines.forgetting import continual
from pipelines.forgetting.importance import FORMAT
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.cache import checked_cache_path
from pipelines.storage.environment import versions
from pipelines.storage.files import digest
from pipelines.storage.records import RetentionRecord, read_records
from pipelines.storage.run_folder import Run


@dataclass
class ForgettingContext:
    """A job with the model that it starts from. Everything is computed at first use."""

    job: Job
    run: Run
    starting_model_folder: Path
    """The folder of the model that the job starts from: the base, or the model of an earlier run."""
    strategies_by_name: dict[str, Any] = field(default_factory=dict)
    """The first `Strategy` object of every strategy that has been built so far."""

    @property
    def seed(self) -> int:
        return self.job.pipeline.seed

    @property
    def strategies(self) -> list[str]:
        return self.job.pipeline.forgetting.strategies

    @cached_property
    def content_fingerprint(self) -> str:
        """The fingerprint of the content of `starting_model_folder`, whatever the quantization."""
        return fingerprint(self.starting_model_folder)

    @cached_property
    def model_fingerprint(self) -> str:
        """The fingerprint of the model as it is loaded: a quantized model has other predictions."""
        quantization = self.job.quantization
        return digest(self.content_fingerprint, quantization)[:16] if quantization else self.content_fingerprint

    def fingerprint_of_run(self, run: Run) -> str:
        """Returns the fingerprint of the model that another run has trained."""
        return fingerprint(run.path("model"))

    @cached_property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_folder(self.starting_model_folder, self.job.chat_template_settings())

    def load_model(self) -> LoadedModel:
        return LoadedModel.from_folder(
            self.starting_model_folder, self.job.chat_template_settings(), self.job.quantization
        )

    # --- rows of the job and of the earlier runs ---

    @cached_property
    def earlier_runs(self) -> list[Run]:
        """The runs that led to the model that the job starts from, the latest first."""
        return list(continual.earlier_runs(self.run))

    def load_split(self, run: Run, split: str) -> TokenSequences:
        """Returns the tokenized rows of a split of a run."""
        return TokenDataset.from_table(open_split(run.path("data"), split)).sequences

    # --- general text ---

    @cached_property
    def general_answers(self) -> TokenSequences:
        """The bundled general instructions with the starting model's own answers."""
        system, file = self.job.system_prompt(), bundled_file("general/instructions.jsonl")
        answers = generate_general_answers(self.load_model, self.prompt_format, self.model_fingerprint, file, system)
        return encode_answers(self.prompt_format, answers, system)

    @cached_property
    def general_passages(self) -> TokenSequences:
        """The bundled passages, in which every token but the first is supervised."""
        return encode_passages(self.prompt_format, bundled_file("general/passages.jsonl"))

    def sample_general_text(self, num_sequences: int) -> TokenSequences:
        """Returns a random sample of passages and answers: `num_sequences` of them, or all if there are fewer."""
        sequences = TokenSequences.concatenate(self.general_passages, self.general_answers)
        order = np.random.default_rng(self.seed).permutation(len(sequences))
        return sequences.select([int(index) for index in order[:num_sequences]])

    def load_replay_rows(self, file: Path) -> TokenSequences:
        """Returns the rows of a user's own file. Raises DataError."""
        return load_replay_rows(self.prompt_format, file, self.job.system_prompt())

    # --- retention evals ---

    @cached_property
    def prepared_retention_evals(self) -> list[PreparedRetentionEval]:
        """The retention evals of the config, and the tasks of the earlier runs."""
        context = PreparationContext(
            self.prompt_format, self.load_model, self.model_fingerprint, self.job.system_prompt()
        )
        prepared = prepare_retention_evals(self.job.pipeline.forgetting, context)
        return [*prepared, *continual.earlier_tasks(self.run)]

    @cached_property
    def base_retention_means(self) -> dict[str, float]:
        """The mean score of each retention eval before training, as the run has measured it."""
        scores: dict[str, list[float]] = {}
        for record in read_records(self.run.path("retention", "base.jsonl"), RetentionRecord):
            if record.score is not None:
                scores.setdefault(record.eval, []).append(record.score)
        return {name: sum(values) / len(values) for name, values in scores.items()}

    # --- files ---

    def importance_file(self, strategy: str, sequences: TokenSequences, measurement: object) -> Path:
        """Returns the path in the user's cache of the importance that `strategy` measures on `sequences`.

        `measurement` holds the settings that the importance depends on. The path also depends on the model, the
        trained weights and the versions of the libraries.
        """
        adapter = self.job.adapter
        text = digest([ids.tolist() for ids in sequences.input_ids], list(sequences.supervised_spans))
        frozen = self.job.trainer.get("layers_to_freeze_regex")
        targets = [adapter.get("type"), adapter.get("target_modules")] if adapter else None
        key = digest(FORMAT, self.model_fingerprint, text, measurement, self.seed, targets, frozen, versions())
        return checked_cache_path("importance", f"{strategy}-{key[:32]}.safetensors")
