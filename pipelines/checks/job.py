"""Everything that can be known of a job before a model is loaded: its YAML, rows, metrics, model folder and chat template.

Neither torch nor Ludwig is imported, so that a check takes seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipelines.checks.chat_template import check_rendering
from pipelines.checks.scores import ScoreChecks
from pipelines.config.job import Job
from pipelines.config.trainer import of_rows
from pipelines.console.activity import doing
from pipelines.data.examples import Example, check_files, load_examples
from pipelines.data.sample_prompts import read_probes
from pipelines.data.token_ids import check_token_ids
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.evaluation.retention_files import check_retention_evals
from pipelines.modeling.base_models import check_base_model, local_folder, locate_model_errors
from pipelines.modeling.model_folder import read_config, text_config
from pipelines.modeling.module_names import check_names


@dataclass(frozen=True)
class Checked:
    """What a job without errors holds, and what is doubtful in it."""

    rows: int
    warnings: list[Problem]


def check_job(job: Job) -> Checked:
    """Raises ConfigError, DataError or ModelError with every problem of the first kind that is found."""
    check_files(job)
    scores = ScoreChecks(job)
    if problems := scores.errors():
        raise ConfigError(problems)
    _check_models(job)
    folder = local_folder(job.ludwig["base_model"])
    if folder is not None:
        check_names(job, folder)
    firsts: dict[str, Example] = {}
    rows: Counter[str] = Counter()
    with doing("reading the rows"):
        for example in load_examples(job.pipeline):
            rows[example.split] += 1
            firsts.setdefault(example.task, example)
            scores.see(example)
    if problems := [*scores.errors(), *of_rows(job, rows["train"], rows["validation"])]:
        raise DataError(problems)
    if folder is not None:
        check_rendering(job, folder, firsts)
        if isinstance(vocabulary := text_config(read_config(folder)).get("vocab_size"), int):
            check_token_ids(job, vocabulary)
    check_retention_evals(job.pipeline.forgetting)
    if job.pipeline.report.prompts:
        read_probes(Path(job.pipeline.report.prompts))
    return Checked(rows.total(), scores.warnings())


def _check_models(job: Job) -> None:
    """Every model that the YAML names, as far as it lies on this disk."""
    with locate_model_errors(job, "base_model"):
        check_base_model(job.ludwig["base_model"])
    distill = job.pipeline.forgetting.distill
    if distill is not None and distill.teacher is not None:
        with locate_model_errors(job, "pipeline", "forgetting", "distill", "teacher"):
            check_base_model(distill.teacher)
