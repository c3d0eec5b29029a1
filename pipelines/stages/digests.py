"""What each stage of a run depends on, as one digest a stage: a stage whose digest is unchanged is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.checks.files import check_data_files, referenced_files
from pipelines.config.job import Job
from pipelines.data.sample_prompts import load_sample_prompts
from pipelines.evaluation.retention_files import check_retention_evals, resolve_data_file, retention_eval_configs
from pipelines.modeling.base_models import find_base_model, locate_model_errors
from pipelines.modeling.content_hash import fingerprint
from pipelines.scoring.custom_metrics import metric_source
from pipelines.scoring.metric import metric_key
from pipelines.storage.files import digest, file_digest

PREPARED_FORMAT = 3
"""Raised when prepared tokens change for the same inputs, so that finished stages are done again."""


def stage_inputs(job: Job, model_id: str) -> dict[str, str]:
    """A digest for each stage, so that a changed gate asks for a new report only, a changed metric, probe or bound for no new
    training, and a changed seed for no new base pass. `model_id`: the fingerprint of the model that the job starts from.

    Raises DataError for files that are missing or hold no such rows, ModelError for a teacher that is none.
    """
    pipeline, ludwig, files = job.pipeline, job.ludwig, _data_files(job)
    tasks, generation = pipeline.tasks.items(), ludwig["generation"]
    not_in_tokens: dict[str, Any] = {
        "seed": True,
        "mix": True,
        "temperature": True,
        "report": True,
        "forgetting": True,
        "continue_from": True,
        "max_nonfinite_steps": True,
        "tasks": {"__all__": {"metric", "normalize", "cluster_by", "max_new_tokens", "weight"}},
    }
    data = {file: files[file] for where, file in referenced_files(job) if "tasks" in where}
    tokens = pipeline.model_dump(mode="json", exclude=not_in_tokens)
    shared = [PREPARED_FORMAT, model_id, tokens, data, ludwig.get("preprocessing"), ludwig.get("quantization")]
    bounds = {name: task.max_new_tokens for name, task in tasks}
    mix = [pipeline.seed, pipeline.mix, pipeline.temperature, {name: task.weight for name, task in tasks}]
    training = {key: value for key, value in ludwig.items() if key not in ("generation", "base_model")}
    scoring = {
        name: [metric_key(task.metric, task.normalize), metric_source(task.metric), task.cluster_by]
        for name, task in tasks
    }
    # The references are scored as answers while rows are prepared, so what cuts an answer counts.
    prepare = digest(*shared, files, scoring, bounds, generation["max_new_tokens"])
    base = digest(*shared, generation, bounds, files.get(pipeline.report.sample_prompts or ""))
    guards = digest(model_id, pipeline.system, pipeline.chat_template, _guard_files(job), pipeline.continue_from)
    forgetting = pipeline.forgetting.model_dump(mode="json", exclude={"evals"})
    others = [_teacher(job), [files[file] for where, file in referenced_files(job) if "replay" in where]]
    train = digest(*shared, mix, training, forgetting, others, pipeline.forgetting.eval_steps and guards)
    tuned, tuned_guards = digest(train, base), digest(train, guards)
    report = digest(base, tuned, tuned_guards, scoring, pipeline.report.model_dump(mode="json"))
    return {
        "prepare": prepare,
        "eval_base": base,
        "eval_base_retention": guards,
        "train": train,
        "eval_tuned": tuned,
        "eval_tuned_retention": tuned_guards,
        "report": report,
    }


def _teacher(job: Job) -> str | None:
    """The content of the teacher that distillation names."""
    distill = job.pipeline.forgetting.distill
    if distill is None or distill.teacher is None:
        return None
    with locate_model_errors(job, "pipeline", "forgetting", "distill", "teacher"):
        return fingerprint(find_base_model(distill.teacher))


def _data_files(job: Job) -> dict[str, str]:
    """sha256 of every file that the job names but for its guards'. Raises DataError for each that is missing, and for probes
    that are none."""
    check_data_files(job)
    if job.pipeline.report.sample_prompts:
        load_sample_prompts(Path(job.pipeline.report.sample_prompts))
    return {file: file_digest(Path(file)) for where, file in referenced_files(job) if "guards" not in where}


def _guard_files(job: Job) -> list[Any]:
    """Each guard with the sha256 of its rows. Raises DataError for rows that are no guard's."""
    check_retention_evals(job.pipeline.forgetting)
    return [
        [name, guard.model_dump(exclude={"data"}), metric_source(guard.metric), file_digest(resolve_data_file(guard))]
        for name, guard in retention_eval_configs(job.pipeline.forgetting).items()
    ]
