"""Training and evaluation on a Ray cluster, for `backend: {type: ray}`.

In training, each worker is one process of a torch.distributed process group and processes its shard of every step's
rows. In evaluation, the rows are distributed over as many actors. The workers run the same `train` and `LocalEvaluator`
as a single machine does. All nodes must see the run's folder under the same path. If a worker dies in training, the
group is restarted and resumes from its last checkpoint; in evaluation, Ray restarts the actor and repeats its task.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.errors import AlfineError, ConfigError, RunError
from pipelines.evaluation.completions import MAX_BATCH_SIZE
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run
from pipelines.training import ray_cluster
from pipelines.training.train import ProgressCallback, train

if TYPE_CHECKING:
    import ray
    import ray.exceptions as ray_exceptions
    import ray.train as ray_train
    import ray.train.torch as ray_torch
    import ray.train.v2.api.config as ray_config
    import ray.train.v2.api.exceptions as ray_train_exceptions
    import ray.util as ray_util

    from pipelines.evaluation import evaluator
    from pipelines.evaluation.completions import Completion, Progress
    from pipelines.evaluation.retention import PreparedRetentionEval
    from pipelines.modeling.token_dataset import TokenDataset
else:
    # Ray is an optional package, and 1 s to import.
    ray, ray_train = lazy_import("ray"), lazy_import("ray.train")
    ray_exceptions, ray_util = lazy_import("ray.exceptions"), lazy_import("ray.util")
    ray_torch = lazy_import("ray.train.torch")
    ray_config, ray_train_exceptions = (lazy_import(f"ray.train.v2.api.{name}") for name in ("config", "exceptions"))
    evaluator = lazy_import("pipelines.evaluation.evaluator")  # torch

MAX_FAILURES = 3
"""Default of `backend.trainer.max_failures`, the restarts of dead workers before training or evaluation fails."""
RETENTION_BATCH_ITEMS = 16
"""Items of a retention eval that one worker scores per task."""
POLL_INTERVAL_S = 0.5
"""Seconds between two reads of the workers' progress."""
CLOSING_SECONDS = 15.0
"""Time in which workers may end the programs that they have started."""


def uses_ray(job: Job) -> bool:
    return bool(job.backend["type"] == "ray")


# --- training ---


def train_on_ray(job: Job, run: Run, starting_model_folder: Path, progress: ProgressCallback) -> None:
    """Trains as `train` does, in the configured number of Ray workers.

    Raises ConfigError if Ray is not installed or has too few resources, MachineError if it cannot be reached, RunError
    if workers die more often than `max_failures`, and the errors of `train`.
    """
    _connect(job)
    num_workers, resources_per_worker = ray_cluster.resources(job)
    progress_actor = ray.remote(_ProgressActor).options(num_cpus=0).remote()
    ray_dir = run.path("training", "ray").absolute()
    shutil.rmtree(ray_dir, ignore_errors=True)
    trainer = ray_torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job,
            "run_folder": run.folder.absolute(),
            "starting_model_folder": starting_model_folder.absolute(),
            "progress_actor": progress_actor,
            "working_directory": os.getcwd(),
            "cache": os.environ.get("ALFINE_CACHE"),
        },
        scaling_config=ray_train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=resources_per_worker.get("GPU", 0) > 0,
            resources_per_worker=resources_per_worker,
        ),
        run_config=ray_train.RunConfig(
            name="workers",
            storage_path=str(ray_dir),
            worker_runtime_env=ray_cluster.runtime_env(num_workers, resources_per_worker),
            failure_config=ray_train.FailureConfig(max_failures=_max_failures(job)),
            logging_config=ray_config.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        with _forward_progress(progress_actor, progress):
            trainer.fit()
    except ray_train_exceptions.TrainingFailedError as error:
        reason = ray_cluster.error_line(error.__cause__ or error)
        raise RunError(f"training on Ray failed: {reason}; the workers' logs are in {run.path('training')}") from None
    finally:
        shutil.rmtree(ray_dir, ignore_errors=True)
    if (worker_error := ray.get(progress_actor.get_error.remote())) is not None:
        raise worker_error


def _train_worker(config: dict[str, Any]) -> None:
    """Trains in one worker.

    An AlfineError is deterministic: it is stored in the progress actor, and a restarted worker returns at once.
    """
    progress_actor = config["progress_actor"]
    if ray.get(progress_actor.get_error.remote()) is not None:
        return
    os.chdir(config["working_directory"])
    if config["cache"]:
        os.environ["ALFINE_CACHE"] = config["cache"]
    is_rank_0 = ray_train.get_context().get_world_rank() == 0

    def progress(done: int, total: int, loss: float | None) -> None:
        if is_rank_0:
            progress_actor.set_progress.remote(done, total, loss)

    try:
        train(config["job"], Run(config["run_folder"]), config["starting_model_folder"], progress)
    except AlfineError as error:
        ray.get(progress_actor.set_error.remote(error))
        raise


class _ProgressActor:
    """Stores the workers' progress and their first error for the process that waits for them."""

    def __init__(self) -> None:
        self._progress: tuple[int, int, float | None] | None = None
        self._error: AlfineError | None = None

    def set_progress(self, done: int, total: int, loss: float | None) -> None:
        self._progress = (done, total, loss)

    def latest(self) -> tuple[int, int, float | None] | None:
        return self._progress

    def set_error(self, error: AlfineError) -> None:
        self._error = self._error or error

    def get_error(self) -> AlfineError | None:
        return self._error


@contextlib.contextmanager
def _forward_progress(progress_actor: Any, progress: ProgressCallback) -> Iterator[None]:
    """Calls `progress` with the workers' progress during the block."""
    finished = threading.Event()

    def poll() -> None:
        previous = None
        while not finished.wait(POLL_INTERVAL_S):
            latest = ray.get(progress_actor.latest.remote())
            if latest is not None and latest != previous:
                progress(*latest)
                previous = latest

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _max_failures(job: Job) -> int:
    return int(job.backend.get("trainer", {}).get("max_failures", MAX_FAILURES))


def _connect(job: Job) -> None:
    """Connects to the cluster, see `ray_cluster.connect`."""
    if uses_ray(job):
        message = "backend.type ray needs Ray, which is not installed; pip install 'ray[train]', or write type: local"
        ray_cluster.connect(ConfigError(job.problem(message, "backend", "type")))
    else:
        ray_cluster.connect(ConfigError("--ray needs Ray, which is not installed; pip install 'ray[train]'"))


# --- evaluation ---


@contextlib.contextmanager
def ray_evaluator(
    job: Job, starting_model_folder: Path, tuned: Path | None, num_workers: int = 0
) -> Iterator[RayEvaluator]:
    """Yields an evaluator of the base model or of the folder `tuned`. Its actors are killed after the block.

    num_workers: the number of actors; 0 for that of the config, see `ray_cluster.resources`.
    """
    _connect(job)
    num_workers, resources = ray_cluster.resources(job, num_workers, "--workers")
    max_failures = _max_failures(job)
    actor_class = ray.remote(evaluator.LocalEvaluator).options(
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        runtime_env=ray_cluster.runtime_env(num_workers, resources),
        max_restarts=max_failures,
        max_task_retries=max_failures,
    )
    tuned = tuned and tuned.absolute()
    actors = [actor_class.remote(job, starting_model_folder.absolute(), tuned) for _ in range(num_workers)]
    try:
        yield RayEvaluator(actors)
    finally:
        # vLLM ends, and frees the GPUs, before the next stage.
        with contextlib.suppress(ray_exceptions.RayError):
            ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSING_SECONDS)
        for actor in actors:
            ray.kill(actor)


class RayEvaluator:
    """An `Evaluator` that distributes the rows over Ray actors."""

    inference_note: str | None = None

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def engine(self) -> str | None:
        engine: str | None = ray.get(self.actors[0].engine.remote())
        return engine

    def _map(
        self, submit: Callable[[Any, Any], Any], batches: Sequence[Any], progress: Progress = lambda count: None
    ) -> list[Any]:
        """Returns the result of each batch. `submit(actor, batch)` starts a task on the next free actor.

        Raises RunError if actors die more often than `max_failures`.
        """
        results = []
        try:
            for result in ray_util.ActorPool(self.actors).map(submit, batches):
                results.append(result)
                progress(len(result))
        except ray_exceptions.RayError as error:
            raise RunError(f"a Ray worker failed: {ray_cluster.error_line(error)}") from None
        return results

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        max_new_tokens: Sequence[int],
        progress: Progress = lambda count: None,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:
        # Batches of similar lengths, and at least two per actor.
        order = sorted(range(len(prompts)), key=lambda index: (max_new_tokens[index], len(prompts[index]), index))
        batch_size = min(MAX_BATCH_SIZE, max(1, len(order) // (2 * len(self.actors))))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

        def submit(actor: Any, indices: list[int]) -> Any:
            return actor.complete.remote(
                [prompts[index] for index in indices],
                generation,
                [max_new_tokens[index] for index in indices],
                references=[references[index] for index in indices] if references else None,
            )

        completions = [completion for batch in self._map(submit, batches, progress) for completion in batch]
        return [completion for _, completion in sorted(zip(order, completions, strict=True), key=itemgetter(0))]

    def complete_batches(self, batches: Iterable[tuple[Any, ...]]) -> Iterator[list[Completion]]:
        """Yields the completions of each batch, in order. A batch is the arguments of `completions.complete` after the
        model, and is completed by one actor as one call, so that completions are those of a single machine.

        `batches` is read as actors become free: two batches per actor are in memory. Raises as `_map`.
        """
        pool, batches = ray_util.ActorPool(self.actors), iter(batches)
        try:
            for batch in islice(batches, 2 * len(self.actors)):
                pool.submit(lambda actor, arguments: actor.complete.remote(*arguments), batch)
            while pool.has_next():
                completions = pool.get_next()
                for batch in islice(batches, 1):
                    pool.submit(lambda actor, arguments: actor.complete.remote(*arguments), batch)
                yield completions
        except ray_exceptions.RayError as error:
            raise RunError(f"a Ray worker failed: {ray_cluster.error_line(error)}") from None

    def score_retention_eval(self, prepared: PreparedRetentionEval) -> list[float | None]:
        batches = list(prepared.batches(RETENTION_BATCH_ITEMS))
        results = self._map(lambda actor, batch: actor.score_retention_eval.remote(batch), batches)
        return [score for scores in results for score in scores]

    def validation_losses(self, dataset: TokenDataset) -> dict[str, Any]:
        (losses,) = self._map(lambda actor, data: actor.validation_losses.remote(data), [dataset])
        return dict(losses)
