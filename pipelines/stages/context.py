"""The objects that the stages of one run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.prompt_format import PromptFormat
from pipelines.storage.run_folder import Run


@dataclass(frozen=True)
class StageContext:
    """The job, its run, and the model that training starts from."""

    job: Job
    run: Run
    reporter: ConsoleReporter
    starting_model_folder: Path
    """The base model, or the model of the run that this job continues from."""
    model_fingerprint: str
    """The fingerprint of the model in `starting_model_folder`."""
    file_sha256: Callable[[Path], str]
    """The sha256 of a file, computed once per run."""

    @property
    def generation(self) -> dict[str, Any]:
        """The section `generation` of the config."""
        return self.job.generation

    @cached_property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_folder(self.starting_model_folder, self.job.chat_template_settings())
