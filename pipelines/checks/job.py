"""The check of a job before a model is loaded: config, rows, metrics, model folder and chat template.

Ludwig is not imported, and torch only where there is a GPU to try, so that `alfine check` takes seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.checks.chat_template import check_chat_template, renderer
from pipelines.checks.conversations import ConversationChecks
from pipelines.checks.files import check_data_files, source_notes
from pipelines.checks.hardware import check_hardware
from pipelines.checks.metrics import MetricChecks
from pipelines.checks.token_ids import check_token_ids
from pipelines.config.job import Job
from pipelines.config.optional_packages import check_optional_packages
from pipelines.config.trainer_checks import check_trainer_on_data
from pipelines.console.activity import track_activity
from pipelines.data.examples import Example, HeldOutRows, load_examples
from pipelines.data.row_reasoning import RowReasoning
from pipelines.data.sample_prompts import load_sample_prompts
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.evaluation.retention import check_retention_evals
from pipelines.modeling.base_models import check_base_model, local_folder, locate_model_errors
from pipelines.modeling.model_folder import read_config, text_config
from pipelines.modeling.module_names import check_module_names


@dataclass(frozen=True)
class CheckResult:
    """The number of rows of a job without errors, its warnings, and notes on what was detected in its files."""

    num_rows: int
    warnings: list[Problem]
    notes: list[str] = field(default_factory=list)


def check_job(job: Job) -> CheckResult:
    """Raises ConfigError, DataError, ModelError or MachineError with every problem of the first check that fails."""
    check_optional_packages(job)
    check_data_files(job)
    metrics = MetricChecks(job)
    if problems := metrics.errors():
        raise ConfigError(problems)
    _check_models(job)
    folder = local_folder(job.base_model)
    if folder is not None:
        check_module_names(job, folder)
    first_examples: dict[str, Example] = {}
    num_rows: Counter[str] = Counter()
    prompt_format = None if folder is None else renderer(job, folder)
    reasoning = None if prompt_format is None else RowReasoning(job, prompt_format.reasoning_markers, prompt_format)
    conversations = None if prompt_format is None else ConversationChecks(prompt_format)
    with track_activity("reading the rows"):
        rows = HeldOutRows()
        examples = load_examples(job.pipeline, rows)
        # What a model can express of the rows' reasoning is only known with its files.
        for example in reasoning.apply(examples) if reasoning else examples:
            num_rows[example.split] += 1
            first_examples.setdefault(example.task, example)
            if conversations is not None:
                conversations.observe(example)
            metrics.observe(example)
    if problems := [*metrics.errors(), *check_trainer_on_data(job, num_rows["train"], num_rows["validation"])]:
        raise DataError(problems)
    notes = [*source_notes(job), *(reasoning.notes if reasoning else []), *rows.notes(job.pipeline)]
    if folder is not None and prompt_format is not None:
        notes += check_chat_template(job, prompt_format, first_examples)
        if conversations is not None:
            conversations.raise_if_any()
        if isinstance(vocab_size := text_config(read_config(folder)).get("vocab_size"), int):
            check_token_ids(job, vocab_size)
    check_retention_evals(job.pipeline.forgetting)
    if job.pipeline.report.sample_prompts:
        load_sample_prompts(Path(job.pipeline.report.sample_prompts))
    warnings = check_hardware(job)
    warnings += [Problem(warning) for warning in reasoning.warnings] if reasoning else []
    return CheckResult(num_rows.total(), [*warnings, *metrics.warnings()], notes)


def _check_models(job: Job) -> None:
    """Checks every model that the config names, as far as its files are on this disk."""
    with locate_model_errors(job, "base_model"):
        check_base_model(job.base_model)
    for strategy, key, name in job.pipeline.forgetting.model_names():
        with locate_model_errors(job, "pipeline", "forgetting", strategy, key):
            check_base_model(name)
