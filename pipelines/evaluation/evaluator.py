"""What the base and the tuned model are asked, the same of both: completions, losses, guards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.config.job import Job
from pipelines.evaluation.completions import Completion, LoadedModel, Progress, complete, quantization_config
from pipelines.evaluation.retention import PreparedRetentionEval, score_retention_eval
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_dataset import TokenDataset, validation_losses


class Evaluator(Protocol):
    """One model, asked."""

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        bounds: Sequence[int],
        progress: Progress = ...,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]: ...

    def score_retention_eval(self, guard: PreparedRetentionEval) -> list[float | None]: ...

    def validation_losses(self, rows: TokenDataset) -> dict[str, Any]: ...


class LocalEvaluator:
    """In this process."""

    def __init__(self, job: Job, base_folder: Path, tuned: Path | None) -> None:
        """`tuned`: the folder of what was trained; None asks the base."""
        base = LoadedModel.base(base_folder, job.pipeline.chat_template, quantization_config(job))
        self.seed = job.pipeline.seed
        self.loaded = base if tuned is None else base.with_adapter(tuned)
        self._base_logits = ReferenceModel(self.loaded.model).logits if self.loaded.has_adapter else base.logits

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        bounds: Sequence[int],
        progress: Progress = lambda rows: None,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:
        return complete(self.loaded, prompts, generation, bounds, progress, references, self.seed)

    def score_retention_eval(self, guard: PreparedRetentionEval) -> list[float | None]:
        return score_retention_eval(self.loaded, guard, self._base_logits)

    def validation_losses(self, rows: TokenDataset) -> dict[str, Any]:
        return validation_losses(self.loaded.model, rows)
