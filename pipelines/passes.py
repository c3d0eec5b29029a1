"""What the base and the tuned model are asked, the same of both: completions, losses, guards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.completions import Completion, LoadedModel, Progress, complete, quantization_of
from pipelines.config import Job
from pipelines.engine.reference import ReferenceModel
from pipelines.engine.token_rows import TokenRows, validation_losses
from pipelines.forgetting.guards import PreparedGuard, score_guard


class Pass(Protocol):
    """One model, asked."""

    def complete(
        self, prompts: Sequence[list[int]], generation: dict[str, Any], bounds: Sequence[int],
        progress: Progress = ..., references: Sequence[list[int]] | None = None,
    ) -> list[Completion]: ...  # fmt: skip

    def score_guard(self, guard: PreparedGuard) -> list[float | None]: ...

    def validation_losses(self, rows: TokenRows) -> dict[str, Any]: ...


class LocalPass:
    """In this process."""

    def __init__(self, job: Job, base_folder: Path, tuned: Path | None) -> None:
        """`tuned`: the folder of what was trained; None asks the base."""
        base = LoadedModel.base(base_folder, job.pipeline.chat_template, quantization_of(job))
        self.seed = job.pipeline.seed
        self.loaded = base if tuned is None else base.attach(tuned)
        self._base_logits = ReferenceModel(self.loaded.model).logits if self.loaded.has_adapter else base.logits

    def complete(
        self, prompts: Sequence[list[int]], generation: dict[str, Any], bounds: Sequence[int],
        progress: Progress = lambda rows: None, references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:  # fmt: skip
        return complete(self.loaded, prompts, generation, bounds, progress, references, self.seed)

    def score_guard(self, guard: PreparedGuard) -> list[float | None]:
        return score_guard(self.loaded, guard, self._base_logits)

    def validation_losses(self, rows: TokenRows) -> dict[str, Any]:
        return validation_losses(self.loaded.model, rows)
