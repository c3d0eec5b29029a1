"""Evaluation of one model: completions, retention evals and validation losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.config.job import Job
from pipelines.config.pipeline_checks import vllm_conflict
from pipelines.evaluation.completions import Completion, LoadedModel, Progress, complete
from pipelines.evaluation.retention import PreparedRetentionEval, score_retention_eval
from pipelines.modeling.hardware import configure_hardware
from pipelines.modeling.packed_weights import packed_weights
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_dataset import TokenDataset, validation_losses


class Evaluator(Protocol):
    """Interface for running completions, retention evals and validation losses on one model."""

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        max_new_tokens: Sequence[int],
        progress: Progress = ...,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:
        """See `completions.complete`."""
        ...

    @property
    def inference_note(self) -> str | None:
        """See `LoadedModel.inference_note`."""
        ...

    def engine(self) -> str | None:
        """See `LoadedModel.engine`."""
        ...

    def score_retention_eval(self, prepared: PreparedRetentionEval) -> list[float | None]:
        """The score of each item, in the unit of the eval's kind; None for an item that could not be scored."""
        ...

    def validation_losses(self, dataset: TokenDataset) -> dict[str, Any]:
        """See `token_dataset.validation_losses`."""
        ...


class LocalEvaluator:
    """An evaluator that loads its model into this process."""

    def __init__(self, job: Job, starting_model_folder: Path, tuned: Path | None) -> None:
        """Loads the model that the job starts from and, if `tuned` is a folder that training exported, the tuned model.

        The first is the base model, or the model of an earlier run.
        """
        configure_hardware(job.pipeline.hardware)
        # Base and tuned are completed by the same engine.
        allow_vllm = vllm_conflict(job.ludwig) is None
        starting_model = LoadedModel.from_folder(
            starting_model_folder, job.chat_template_settings(), job.quantization, allow_vllm=allow_vllm
        )
        self.seed = job.pipeline.seed
        self.loaded = starting_model if tuned is None else starting_model.with_tuned_model(tuned)
        self._reference_logits = (
            ReferenceModel(self.loaded.model).logits if self.loaded.has_adapter else starting_model.logits
        )

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        max_new_tokens: Sequence[int],
        progress: Progress = lambda count: None,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:
        return complete(self.loaded, prompts, generation, max_new_tokens, progress, references, self.seed)

    @property
    def inference_note(self) -> str | None:
        return self.loaded.inference_note

    def engine(self) -> str | None:
        return self.loaded.engine

    def close(self) -> None:
        """Ends programs that this evaluator has started."""
        if self.loaded.vllm is not None:
            self.loaded.vllm.close()

    def score_retention_eval(self, prepared: PreparedRetentionEval) -> list[float | None]:
        with packed_weights(self.loaded.model):
            return score_retention_eval(self.loaded, prepared, self._reference_logits)

    def validation_losses(self, dataset: TokenDataset) -> dict[str, Any]:
        with packed_weights(self.loaded.model):
            return validation_losses(self.loaded.model, dataset)
