"""The cache of the completions and scores of base models, which later runs with the same model and prompts read.

A result is stored under the digest of everything that it depends on, and only for the base model.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.optional_packages import vllm_version
from pipelines.data.few_shot import FEW_SHOT_FORMAT, FewShotPrompts
from pipelines.data.tokenize_rows import TokenizedExample, open_split
from pipelines.evaluation.completions import COMPLETIONS_FORMAT
from pipelines.modeling.hardware import current_hardware
from pipelines.scoring.custom_metrics import metric_source
from pipelines.scoring.metric import metric_key, reads_reference_loss
from pipelines.stages.context import StageContext
from pipelines.storage.cache import cache_folder, cache_write_error, checked_cache_path
from pipelines.storage.environment import versions
from pipelines.storage.files import STAGING_SUFFIX, atomic_dir, digest
from pipelines.storage.records import RECORDS_FORMAT, RetentionRecord, prompts_for_reasoning, write_records
from pipelines.version import __version__


def numerics() -> list[str | None]:
    """What decides how a model's numbers are rounded: the GPU, the dtype, a required attention path, and vLLM's version
    where it may generate completions."""
    hardware = current_hardware()
    description, engine = hardware.describe(), hardware.inference_engine
    may_use_vllm = engine == "vllm" or (engine == "auto" and description["device"] == "cuda")
    vllm = vllm_version() if may_use_vllm else None
    return [description["gpu"], description["device"], description["dtype"], hardware.attention, engine, vllm]


def completions_cache_path(context: StageContext, rows: Sequence[TokenizedExample]) -> Path:
    """The folder in the cache for the base model's completions of the test rows and sample prompts."""
    job = context.job
    validation = open_split(context.run.path("data"), "validation")["input_ids"].to_pylist()
    sample_prompts = job.pipeline.report.sample_prompts
    asked = prompts_for_reasoning(context.run.manifest)
    key = digest(
        *_completion_inputs(context, rows),
        validation,
        context.file_sha256(Path(sample_prompts)) if sample_prompts else None,
        [job.completion_limit(with_reasoning=asked), asked],
        job.pipeline.system,
    )
    return checked_cache_path("completions", key[:32])


def few_shot_cache_path(context: StageContext, tasks: Sequence[FewShotPrompts], choosing: Iterable[str]) -> Path:
    """The folder in the cache for the base model's completions of the test rows after examples.

    tasks: the prompts of the test rows, with the most examples if their number is chosen, and those of the choice.
    choosing: the tasks whose metric chooses the number of examples.
    """
    rows = [row for task in tasks for row in task.rows]
    summaries = [[dict(task.summary), task.separator] for task in tasks]
    scored = [name for name, task in context.job.pipeline.tasks.items() if reads_reference_loss(task.metric)]
    deciding = {name: context.job.pipeline.tasks[name] for name in choosing}
    choice = {
        name: [metric_key(one.metric, one.normalize), metric_source(one.metric)] for name, one in deciding.items()
    }
    key = digest("few_shot", FEW_SHOT_FORMAT, summaries, scored, choice, *_completion_inputs(context, rows))
    return checked_cache_path("completions", key[:32])


def _completion_inputs(context: StageContext, rows: Sequence[TokenizedExample]) -> list[Any]:
    """What the records of the completions of `rows` by the base model depend on."""
    # The row number is part of a completion's record, so the same rows on other lines of their file have another path.
    prompts = [
        [
            row.example.task,
            row.example.row_number,
            row.input_ids,
            row.supervised_spans,
            row.example.max_new_tokens,
            row.example.reasoning,
        ]
        for row in rows
    ]
    return [
        COMPLETIONS_FORMAT,
        RECORDS_FORMAT,
        context.model_fingerprint,
        prompts,
        [row.example.fields for row in rows],
        context.generation,
        context.job.quantization,
        context.prompt_format.rendering_inputs,
        __version__,
        versions(),
        numerics(),
    ]


def retention_cache_path(context: StageContext, inputs_digest: str) -> Path:
    """The file in the cache for the base model's retention scores; its name is the digest of the stage."""
    rendering = context.prompt_format.rendering_inputs
    key = digest(
        RECORDS_FORMAT, inputs_digest, rendering, context.job.quantization, __version__, versions(), numerics()
    )
    return checked_cache_path("retention", f"{key[:32]}.jsonl")


def store_completions(context: StageContext, folder: Path, cache_path: Path) -> None:
    """Copies the folder of the base model's completions to the cache."""
    with _warn_on_failure(context):
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        # Another run may store the same result at the same time.
        with atomic_dir(cache_path, f".{context.run.name}{STAGING_SUFFIX}", keep_existing=True) as staging:
            shutil.copytree(folder, staging)


def store_retention(context: StageContext, records: Sequence[RetentionRecord], cache_path: Path) -> None:
    """Writes the base model's retention scores to the cache."""
    with _warn_on_failure(context):
        write_records(cache_path, records)


@contextlib.contextmanager
def _warn_on_failure(context: StageContext) -> Iterator[None]:
    """Turns an OSError into a warning: the run has the results in its own folder and does not need the cached copy."""
    try:
        yield
    except OSError as error:
        context.reporter.warn(
            f"{cache_write_error(cache_folder(), error)}. Other runs cannot reuse the results of the base model"
        )
