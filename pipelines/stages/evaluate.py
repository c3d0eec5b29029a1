"""Stages `eval_base`, `eval_base_retention`, `eval_tuned`, `eval_tuned_retention`: the evaluation of both models."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from pipelines.data.sample_prompts import load_sample_prompts
from pipelines.data.tokenize_rows import TokenizedExample, open_split, read_test_examples, tokenize_examples
from pipelines.evaluation.completion_records import completion_record, sample_prompt_record
from pipelines.evaluation.evaluator import Evaluator, LocalEvaluator
from pipelines.evaluation.retention import configured_retention_evals, retention_records
from pipelines.forgetting.context import ForgettingContext
from pipelines.modeling import memory
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.stages.context import StageContext
from pipelines.stages.inference_cache import (
    completions_cache_path,
    retention_cache_path,
    store_completions,
    store_retention,
)
from pipelines.storage.files import atomic_dir, write_json, write_text
from pipelines.storage.records import CompletionRecord, RetentionRecord, prompts_for_reasoning, write_records
from pipelines.training.ray import ray_evaluator, uses_ray

ENGINE_FILE = "engine.txt"
"""The program that has generated the completions of a folder, if it was not alfine."""


class EvaluatorSession:
    """The evaluator of one model, which is loaded when a stage first needs it and released at the end of the block."""

    def __init__(self, context: StageContext, which_model: Literal["base", "tuned"]) -> None:
        self.context, self.which_model = context, which_model
        self._evaluator: Evaluator | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> EvaluatorSession:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        was_used, self._evaluator = self._evaluator is not None, None
        self._resources.close()
        if was_used:
            memory.release_cached_memory()  # models are in reference cycles, and the training loads its own

    @property
    def evaluator(self) -> Evaluator:
        """The model in this process, or on the workers of a Ray cluster."""
        if self._evaluator is None:
            context = self.context
            tuned = context.run.path("model") if self.which_model == "tuned" else None
            with context.reporter.status(f"Loading the {self.which_model} model"):
                if uses_ray(context.job):
                    on_cluster = ray_evaluator(context.job, context.starting_model_folder, tuned)
                    self._evaluator = self._resources.enter_context(on_cluster)
                else:
                    local = LocalEvaluator(context.job, context.starting_model_folder, tuned)
                    self._resources.callback(local.close)
                    self._evaluator = local
        return self._evaluator


def evaluate_rows(session: EvaluatorSession) -> None:
    """Writes `MODEL/completions.jsonl`: the completion of every test row and the loss of its reference.

    MODEL is base or tuned. `MODEL/sample_prompts.jsonl` holds the completions of the sample prompts,
    `base/validation.json` the base model's validation loss, and `MODEL/engine.txt` the program that has generated the
    completions, if it was not this one.
    """
    context, which_model = session.context, session.which_model
    rows = read_test_examples(context.run.path("data"), context.job)
    cache_path = completions_cache_path(context, rows) if which_model == "base" else None
    with atomic_dir(context.run.path(which_model)) as folder:
        if cache_path is not None and cache_path.exists():
            shutil.copytree(cache_path, folder)
            context.reporter.note("base completions loaded from the cache")
        else:
            _write_sample_prompts(session, folder)
            title = f"{which_model.capitalize()} completions"
            write_records(folder / "completions.jsonl", completion_records(session, rows, title))
            if (engine := session.evaluator.engine()) is not None:
                write_text(folder / ENGINE_FILE, engine)
            if which_model == "base":
                _write_validation_loss(session, folder)
            if cache_path is not None:
                store_completions(context, folder, cache_path)
    _record_engine(context, which_model)


def _record_engine(context: StageContext, which_model: str) -> None:
    """Writes to the manifest which program has generated the completions, if it was not this one."""
    file, engines = context.run.path(which_model, ENGINE_FILE), dict(context.run.manifest.get("engines", {}))
    engines.pop(which_model, None)
    if file.exists():
        engines[which_model] = file.read_text(encoding="utf-8")
    context.run.update(engines=engines)
    if which_model == "tuned" and engines and engines.get("base") != engines.get("tuned"):
        base, tuned = (engines.get(name, "alfine") for name in ("base", "tuned"))
        context.reporter.warn(f"completions of base by {base}, of tuned by {tuned}: they differ by rounding too")


def completion_records(
    session: EvaluatorSession, rows: Sequence[TokenizedExample], title: str, unscored_tasks: Container[str] = ()
) -> list[CompletionRecord]:
    """The completions of rows with a reference; `title` names them in the progress and in the log.

    The references of `unscored_tasks` have no loss, which spares the passes over their tokens.
    """
    context = session.context
    prompts, references = [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
    scored = [[] if row.example.task in unscored_tasks else row.completion_ids for row in rows]
    limits = [row.example.max_new_tokens or 0 for row in rows]
    evaluator = session.evaluator
    with context.reporter.progress(title, len(rows), "rows") as progress:
        completions = evaluator.complete(prompts, context.generation, limits, progress, scored)
    if evaluator.inference_note is not None:
        context.reporter.note(f"{title[0].lower()}{title[1:]}: {evaluator.inference_note}")
    return [
        completion_record(row.example, completion, len(reference))
        for row, reference, completion in zip(rows, references, completions, strict=True)
    ]


def _write_sample_prompts(session: EvaluatorSession, folder: Path) -> None:
    context = session.context
    if not context.job.pipeline.report.sample_prompts:
        return
    job, with_reasoning = context.job, prompts_for_reasoning(context.run.manifest)
    samples = load_sample_prompts(Path(str(job.pipeline.report.sample_prompts)), job.system_prompt())
    samples = [replace(sample, reasoning="" if with_reasoning else None) for sample in samples]
    prompts = [row.prompt_ids for row in tokenize_examples(samples, context.prompt_format)]
    limits = [
        job.completion_limit(with_reasoning=with_reasoning, max_new_tokens=sample.max_new_tokens) for sample in samples
    ]
    evaluator = session.evaluator
    with context.reporter.progress(
        f"{session.which_model.capitalize()} sample prompts", len(prompts), "prompts"
    ) as progress:
        completions = evaluator.complete(prompts, context.generation, limits, progress)
    records = [sample_prompt_record(*pair) for pair in zip(samples, completions, strict=True)]
    write_records(folder / "sample_prompts.jsonl", records)


def _write_validation_loss(session: EvaluatorSession, folder: Path) -> None:
    context = session.context
    validation = TokenDataset.from_table(open_split(context.run.path("data"), "validation"))
    if len(validation):
        evaluator = session.evaluator
        with context.reporter.status("Validation loss of the base model"):
            write_json(folder / "validation.json", evaluator.validation_losses(validation))


def evaluate_retention(session: EvaluatorSession, inputs_digest: str | None = None) -> None:
    """Writes `retention/MODEL.jsonl`: the score of every item of every retention eval. MODEL is base or tuned.

    The base model's scores are cached by `inputs_digest`, the digest of what they depend on.
    """
    context, which_model = session.context, session.which_model
    pipeline, file = context.job.pipeline, context.run.path("retention", f"{which_model}.jsonl")
    if not configured_retention_evals(pipeline.forgetting) and pipeline.continue_from is None:
        write_text(file, "")
        return
    cache_path = retention_cache_path(context, inputs_digest) if inputs_digest is not None else None
    if cache_path is not None and cache_path.exists():
        write_text(file, cache_path.read_text(encoding="utf-8"))
        context.reporter.note("base retention scores loaded from the cache")
        return
    evals = ForgettingContext(context.job, context.run, context.starting_model_folder).prepared_retention_evals
    records: list[RetentionRecord] = []
    evaluator = session.evaluator
    with context.reporter.progress(f"{which_model.capitalize()} retention evals", len(evals), "evals") as progress:
        for retention_eval in evals:
            records += retention_records(retention_eval, evaluator.score_retention_eval(retention_eval))
            progress(1)
    write_records(file, records)
    if cache_path is not None:
        store_retention(context, records, cache_path)
