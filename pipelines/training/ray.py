"""A job on a Ray cluster, for `backend: {type: ray}`: training by one process a worker, each on its share of every step's rows,
and both passes with the rows dealt out to as many.

The workers run the same `train` and the same `LocalEvaluator` as a laptop does; what they share is the run folder, which every node
must see under the same path. A worker that dies in training restarts the group, which goes on from its last checkpoint; one that
dies in a pass is replaced and asked again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.errors import AlfineError, ConfigError, MachineError, RunError
from pipelines.storage.run_folder import Run
from pipelines.training.train import ProgressCallback, train

if TYPE_CHECKING:
    from pipelines.evaluation.completions import Completion, Progress
    from pipelines.evaluation.retention import PreparedRetentionEval
    from pipelines.modeling.token_dataset import TokenDataset

MAX_FAILURES = 3
"""Times that a worker may die before the training is given up."""
RETENTION_BATCH_ITEMS = 16
"""Items of a guard that are scored at once by one worker."""
POLL_INTERVAL_S = 0.5
"""Seconds between two looks at how far the workers are."""


def on_ray(job: Job) -> bool:
    return bool(job.backend["type"] == "ray")


def train_on_ray(job: Job, run: Run, base_model: Path, report: ProgressCallback) -> None:
    """As `train`, by the workers that the YAML asks for. Raises ConfigError where Ray or its workers are not to be had,
    RunError where they died more often than `max_failures`."""
    ray = _connect(job)
    workers, each = _workers(ray, job)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    progress_actor = ray.remote(_ProgressActor).options(num_cpus=0).remote()
    state = run.path("training", "ray").absolute()
    shutil.rmtree(state, ignore_errors=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "job": job,
            "run": run.folder.absolute(),
            "base_model": base_model.absolute(),
            "progress_actor": progress_actor,
            "folder": os.getcwd(),
            "cache": os.environ.get("ALFINE_CACHE"),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=each.get("GPU", 0) > 0, resources_per_worker=each),
        run_config=RunConfig(
            name="workers",
            storage_path=str(state),
            failure_config=FailureConfig(max_failures=_max_failures(job)),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        with _relayed(ray, progress_actor, report):
            trainer.fit()
    except TrainingFailedError as error:
        cause = next(
            (line for line in reversed(str(error.__cause__ or error).splitlines()) if line.strip()), "no reason given"
        )
        raise RunError(
            f"training on Ray failed: {cause.strip()}; the workers' logs are in {run.path('training')}"
        ) from None
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if (told := ray.get(progress_actor.get_error.remote())) is not None:
        raise told


def _connect(job: Job) -> Any:
    """The module ray, connected: to the cluster of RAY_ADDRESS, or to one of this machine's own cores."""
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # The workers' threads are torch's business, and a warning about it each time would be noise.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError:
        message = "backend.type ray needs Ray, which is not installed; pip install 'ray[train]', or write type: local"
        raise ConfigError(job.problem(message, "backend", "type")) from None
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level="CRITICAL", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise MachineError(f"Ray cannot be reached or started ({where}): {reason}") from None
    return ray


def _max_failures(job: Job) -> int:
    return int(job.backend.get("trainer", {}).get("max_failures", MAX_FAILURES))


def _workers(ray: Any, job: Job) -> tuple[int, dict[str, float]]:
    """How many, and what each needs; without a number one for each GPU, or for each node where there is none."""
    settings = job.backend.get("trainer", {})
    there = ray.cluster_resources()
    use_gpu = bool(settings.get("use_gpu", there.get("GPU", 0) > 0))
    workers = int(settings.get("num_workers") or (there.get("GPU", 0) if use_gpu else len(ray.nodes())))
    each = settings.get("resources_per_worker") or {"CPU": 1, **({"GPU": 1} if use_gpu else {})}
    if not os.environ.get("RAY_ADDRESS"):
        # A cluster may grow; this machine will not, and Ray would wait for ever.
        for kind, amount in each.items():
            if amount * workers > there.get(kind, 0):
                message = (
                    f"backend.trainer asks for {workers} × {amount:g} {kind}, this machine has {there.get(kind, 0):g}"
                )
                raise ConfigError(job.problem(message, "backend", "trainer"))
    return workers, dict(each)


@contextlib.contextmanager
def ray_evaluator(job: Job, base_folder: Path, tuned: Path | None) -> Iterator[RayEvaluator]:
    """The model in as many processes as train; they end with the block."""
    from pipelines.evaluation.evaluator import LocalEvaluator

    ray = _connect(job)
    count, each = _workers(ray, job)
    again = _max_failures(job)
    needs = {"num_cpus": each.get("CPU", 0), "num_gpus": each.get("GPU", 0)}
    actor = ray.remote(LocalEvaluator).options(**needs, max_restarts=again, max_task_retries=again)
    actors = [actor.remote(job, base_folder.absolute(), tuned and tuned.absolute()) for _ in range(count)]
    try:
        yield RayEvaluator(actors)
    finally:
        for one in actors:
            ray.kill(one)


class RayEvaluator:
    """A `Evaluator` whose rows are dealt out."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def _each(
        self, ask: Callable[[Any, Any], Any], parts: Sequence[Any], progress: Progress = lambda rows: None
    ) -> list[Any]:
        """What is answered to each part, by whoever is free. Raises RunError where workers died too often."""
        from ray.exceptions import RayError
        from ray.util import ActorPool

        found = []
        try:
            for answer in ActorPool(self.actors).map(ask, parts):
                found.append(answer)
                progress(len(answer))
        except RayError as error:
            cause = next(line for line in reversed(str(error).splitlines()) if line.strip())
            raise RunError(f"a worker of the cluster failed: {cause.strip()}") from None
        return found

    def complete(
        self,
        prompts: Sequence[list[int]],
        generation: dict[str, Any],
        bounds: Sequence[int],
        progress: Progress = lambda rows: None,
        references: Sequence[list[int]] | None = None,
    ) -> list[Completion]:
        from pipelines.evaluation.completions import MAX_BATCH_SIZE

        order = sorted(range(len(prompts)), key=lambda n: (bounds[n], len(prompts[n]), n))
        size = min(MAX_BATCH_SIZE, max(1, len(order) // (2 * len(self.actors))))
        parts = [order[start : start + size] for start in range(0, len(order), size)]

        def ask(actor: Any, part: list[int]) -> Any:
            asked = [prompts[n] for n in part], generation, [bounds[n] for n in part]
            return actor.complete.remote(*asked, references=[references[n] for n in part] if references else None)

        answers = [answer for some in self._each(ask, parts, progress) for answer in some]
        return [answer for _, answer in sorted(zip(order, answers, strict=True), key=itemgetter(0))]

    def score_retention_eval(self, guard: PreparedRetentionEval) -> list[float | None]:
        scores = self._each(
            lambda actor, part: actor.score_retention_eval.remote(part), list(guard.parts(RETENTION_BATCH_ITEMS))
        )
        return [score for some in scores for score in some]

    def validation_losses(self, rows: TokenDataset) -> dict[str, Any]:
        return dict(self._each(lambda actor, part: actor.validation_losses.remote(part), [rows])[0])


class _ProgressActor:
    """Where the workers write how far they are, for the process that waits for them."""

    def __init__(self) -> None:
        self.last: tuple[int, int, float | None] | None = None
        self.error: AlfineError | None = None

    def step(self, done: int, total: int, loss: float | None) -> None:
        self.last = (done, total, loss)

    def latest(self) -> tuple[int, int, float | None] | None:
        return self.last

    def set_error(self, error: AlfineError) -> None:
        self.error = self.error or error

    def get_error(self) -> AlfineError | None:
        return self.error


@contextlib.contextmanager
def _relayed(ray: Any, progress_actor: Any, report: ProgressCallback) -> Iterator[None]:
    """The steps that the workers report reach `report` while the workers work."""
    finished = threading.Event()

    def relay() -> None:
        seen = None
        while not finished.wait(POLL_INTERVAL_S):
            last = ray.get(progress_actor.latest.remote())
            if last is not None and last != seen:
                report(*last)
                seen = last

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _worker(given: dict[str, Any]) -> None:
    """What each worker does. An error that the user can mend is set on the progress actor and not tried again."""
    import ray
    from ray.train import get_context

    progress_actor = given["progress_actor"]
    if ray.get(progress_actor.get_error.remote()) is not None:
        return
    os.chdir(given["folder"])
    if given["cache"]:
        os.environ["ALFINE_CACHE"] = given["cache"]

    def report(done: int, total: int, loss: float | None) -> None:
        progress_actor.step.remote(done, total, loss)

    def nothing(done: int, total: int, loss: float | None) -> None: ...

    try:
        train(
            given["job"],
            Run(given["run"]),
            given["base_model"],
            report if get_context().get_world_rank() == 0 else nothing,
        )
    except AlfineError as error:
        ray.get(progress_actor.set_error.remote(error))
        raise
