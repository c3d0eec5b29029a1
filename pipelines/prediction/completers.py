"""How batches of prompts are completed: by the models in this process, or by Ray workers."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.evaluation.completions import Completion, Progress, complete
from pipelines.forgetting.continual import existing_starting_model
from pipelines.inference.run_models import RunModels
from pipelines.prediction.models import load_tuned
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.training import ray as alfine_ray
else:
    alfine_ray = lazy_import("pipelines.training.ray")  # the training, 2 s that only --ray needs

Batch = Sequence[TokenizedExample]
CompletedBatch = tuple[Batch, dict[str, list[Completion]]]
"""A batch with its completions by model: `tuned`, and `base` if it was asked for."""
CompleteBatches = Callable[[Iterator[Batch], Progress], Iterator[CompletedBatch]]
"""Yields each batch with its completions, in order, and reports the number of completions that have just been made."""


def open_tuned(run: Run, job: Job, reporter: ConsoleReporter) -> CompleteBatches:
    """Loads the tuned model into this process."""
    with reporter.status("Loading the tuned model"):
        loaded = load_tuned(run, job)

    def complete_batches(batches: Iterator[Batch], progress: Progress) -> Iterator[CompletedBatch]:
        for batch in batches:
            yield batch, {"tuned": complete(loaded, *_arguments(batch, job), progress, seed=job.pipeline.seed)}

    return complete_batches


def open_both(run: Run, job: Job, reporter: ConsoleReporter) -> CompleteBatches:
    """Loads both models into this process, with one copy of the base's weights if the run has an adapter."""
    with reporter.status("Loading both models"):
        models = RunModels.load(run, job)

    def complete_batches(batches: Iterator[Batch], progress: Progress) -> Iterator[CompletedBatch]:
        for batch in batches:
            completions = {}
            for name in ("tuned", "base"):
                with models.active(name) as loaded:
                    completions[name] = complete(loaded, *_arguments(batch, job), progress, seed=job.pipeline.seed)
            yield batch, completions

    return complete_batches


def open_ray(
    run: Run, job: Job, num_workers: int, stack: contextlib.ExitStack, reporter: ConsoleReporter
) -> CompleteBatches:
    """Loads the tuned model into Ray workers, which end with `stack`. `num_workers`: see `ray_evaluator`."""
    with reporter.status("Starting Ray workers"):
        starting_model = existing_starting_model(job, run)
        evaluator = stack.enter_context(alfine_ray.ray_evaluator(job, starting_model, run.path("model"), num_workers))

    def complete_batches(batches: Iterator[Batch], progress: Progress) -> Iterator[CompletedBatch]:
        pending: deque[Batch] = deque()

        def arguments() -> Iterator[tuple[Any, ...]]:
            for batch in batches:
                pending.append(batch)
                yield _arguments(batch, job)

        for completions in evaluator.complete_batches(arguments()):
            progress(len(completions))
            yield pending.popleft(), {"tuned": completions}

    return complete_batches


def _arguments(batch: Batch, job: Job) -> tuple[list[list[int]], dict[str, Any], list[int]]:
    """The arguments `prompts`, `generation` and `max_new_tokens` of `complete`."""
    return [row.prompt_ids for row in batch], job.generation, [row.example.max_new_tokens or 0 for row in batch]
