"""The digest of what each stage of a run depends on. A stage whose digest is unchanged is not run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pipelines.checks.files import check_data_files, referenced_files, task_sources
from pipelines.config.job import Job
from pipelines.data.few_shot import FEW_SHOT_FORMAT
from pipelines.data.sample_prompts import load_sample_prompts
from pipelines.data.sources import source_digests
from pipelines.data.splits import draws_splits, label_column
from pipelines.evaluation.retention import check_retention_evals, configured_retention_evals
from pipelines.modeling.base_models import ensure_base_model, locate_model_errors
from pipelines.modeling.content_hash import fingerprint
from pipelines.scoring.custom_metrics import metric_source
from pipelines.scoring.metric import metric_key, reads_reference_loss
from pipelines.storage.files import digest, file_sha256

Stage = Literal[
    "prepare",
    "eval_base",
    "eval_few_shot",
    "eval_base_retention",
    "train",
    "eval_tuned",
    "eval_tuned_retention",
    "report",
]

PREPARED_FORMAT = 10
"""Raise it when rows are split, rendered or tokenized in another way; the digest holds no version of alfine.

Complete stages then run again although config and data are the same.
"""

KEYS_WITHOUT_EFFECT_ON_TOKENS: Mapping[str, Any] = {
    "seed": True,
    "mix": True,
    "temperature": True,
    "report": True,
    "forgetting": True,
    "continue_from": True,
    "max_nonfinite_steps": True,
    "hardware": True,
    "max_reasoning_tokens": True,
    "tasks": {
        "__all__": {
            "metric",
            "normalize",
            "cluster_by",
            "max_new_tokens",
            "max_reasoning_tokens",
            "weight",
            "test_rows",
            "validation_rows",
            "few_shot",
        }
    },
}
"""Keys of the section `pipeline` that no prepared token depends on.

A new key of the YAML belongs here if its value has no effect on splits, prompts and tokens. A key that is missing here
only causes needless work; with a key that is wrongly here, stages keep outdated tokens.
"""


def stage_digests(
    job: Job, model_fingerprint: str, file_sha256: Callable[[Path], str] = file_sha256
) -> dict[Stage, str]:
    """The digest of every stage; `model_fingerprint` is the fingerprint of the model that training starts from.

    A changed gate changes the digest of the report only. A changed metric, sample prompt or token limit does not change
    the digest of the training, unless rows are split by the labels of that metric; a changed seed does not change that
    of the base model's evaluation. The number of validation rows is an input of the training, that of test rows is not.
    The last three digests are to be combined with the fingerprint of the tuned model, which is known after the
    training.

    Raises DataError for files that are missing or invalid, ModelError for a teacher that is not a model.
    """
    pipeline, generation = job.pipeline, job.generation
    tasks = pipeline.tasks.items()
    files = _data_file_digests(job, file_sha256)
    task_files = {name: source_digests(source, file_sha256) for name, source in task_sources(job).items()}
    strategy_files = [files[file] for _, _, file in pipeline.forgetting.row_files()]
    prepared_settings = pipeline.model_dump(mode="json", exclude=dict(KEYS_WITHOUT_EFFECT_ON_TOKENS))
    token_inputs = [PREPARED_FORMAT, model_fingerprint, prepared_settings, task_files]
    token_inputs += [job.max_sequence_length, job.quantization, job.template_source]
    strata = {name: [task.cluster_by, label_column(task)] for name, task in tasks}
    token_inputs.append({name: strata[name] for name, task in tasks if draws_splits(task, pipeline)})
    limits = [pipeline.max_reasoning_tokens] + [
        [name, task.max_new_tokens, task.max_reasoning_tokens] for name, task in tasks
    ]
    rows = {
        split: [pipeline.report.seed, {name: pipeline.row_limit(task, split) for name, task in tasks}]
        for split in ("validation", "test")
    }
    mixing = [pipeline.seed, pipeline.mix, pipeline.temperature, {name: task.weight for name, task in tasks}]
    trainer = {key: value for key, value in job.ludwig.items() if key not in ("generation", "base_model")}
    scoring = {
        name: [metric_key(task.metric, task.normalize), metric_source(task.metric), task.cluster_by]
        for name, task in tasks
    }
    forgetting = pipeline.forgetting.model_dump(mode="json", exclude={"evals"})

    # The references are scored as completions while rows are prepared, so the token limits count.
    prepare_digest = digest(*token_inputs, files, scoring, limits, rows, generation["max_new_tokens"])
    eval_base_digest = digest(
        *token_inputs, generation, limits, rows, strata, files.get(pipeline.report.sample_prompts or "")
    )
    few_shot = {name: pipeline.few_shot(task).model_dump() for name, task in tasks}
    few_shot_digest = digest(
        *token_inputs,
        generation,
        limits,
        rows["test"],
        strata,
        few_shot,
        {name: scoring[name] for name, task in tasks if pipeline.few_shot(task).choices},
        [name for name, task in tasks if reads_reference_loss(task.metric)],
        FEW_SHOT_FORMAT,
    )
    retention_digest = digest(
        model_fingerprint,
        pipeline.system,
        [job.template_source, pipeline.chat_template, pipeline.chat_template_kwargs],
        _retention_eval_inputs(job, file_sha256),
        pipeline.continue_from,
    )
    eval_in_training_inputs = pipeline.forgetting.eval_steps and retention_digest
    train_digest = digest(
        *token_inputs,
        mixing,
        rows["validation"],
        trainer,
        forgetting,
        [_strategy_model_fingerprints(job), strategy_files],
        eval_in_training_inputs,
    )
    eval_tuned_digest = digest(train_digest, eval_base_digest)
    tuned_retention_digest = digest(train_digest, retention_digest)
    evaluation_digests = [eval_base_digest, few_shot_digest, eval_tuned_digest, tuned_retention_digest]
    report_digest = digest(*evaluation_digests, scoring, pipeline.report.model_dump(mode="json"))
    return {
        "prepare": prepare_digest,
        "eval_base": eval_base_digest,
        "eval_few_shot": few_shot_digest,
        "eval_base_retention": retention_digest,
        "train": train_digest,
        "eval_tuned": eval_tuned_digest,
        "eval_tuned_retention": tuned_retention_digest,
        "report": report_digest,
    }


def _strategy_model_fingerprints(job: Job) -> list[str]:
    """The fingerprints of the models that the strategies' settings name, such as a teacher."""
    fingerprints = []
    for strategy, key, name in job.pipeline.forgetting.model_names():
        with locate_model_errors(job, "pipeline", "forgetting", strategy, key):
            fingerprints.append(fingerprint(ensure_base_model(name)))
    return fingerprints


def _data_file_digests(job: Job, file_sha256: Callable[[Path], str]) -> dict[str, str]:
    """The sha256 of every file that the job names, except those of the tasks and the retention evals.

    Raises DataError for missing files and for invalid sample prompts.
    """
    check_data_files(job)
    if job.pipeline.report.sample_prompts:
        load_sample_prompts(Path(job.pipeline.report.sample_prompts))
    return {file: file_sha256(Path(file)) for path, file in referenced_files(job) if "evals" not in path}


def _retention_eval_inputs(job: Job, file_sha256: Callable[[Path], str]) -> list[Any]:
    """Every retention eval with the sha256 of its rows. Raises DataError for invalid rows."""
    check_retention_evals(job.pipeline.forgetting)
    return [
        [name, spec.model_dump(exclude={"data"}), metric_source(spec.metric_name), file_sha256(spec.file)]
        for name, spec in configured_retention_evals(job.pipeline.forgetting).items()
    ]
