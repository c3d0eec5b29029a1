"""`alfine serve --ray`: the engine of the server is one of several replicas on Ray Serve.

The HTTP server, its page, limits and metrics stay in one process, which loads no weights. Each replica has both models
and a `GenerationEngine`; Ray Serve chooses the replica of a request (the less busy one of two), restarts replicas that
have died, and places them on the nodes of a cluster. All nodes must see the run's folder under the same path.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.console.plain_text import count
from pipelines.errors import AlfineError, ConfigError, MachineError, RunError, UnavailableError
from pipelines.forgetting.continual import existing_starting_model
from pipelines.inference.requests import GenerationRequest
from pipelines.modeling.safetensors_header import num_parameters
from pipelines.registry import lazy_import
from pipelines.serving.remote_engine import AnswerPart, RemoteEngine
from pipelines.storage.environment import free_main_memory
from pipelines.storage.run_folder import Run
from pipelines.training import ray_cluster

if TYPE_CHECKING:
    import ray
    from ray import exceptions as ray_exceptions
    from ray import serve

    from pipelines.inference import engine, run_models
else:
    ray, serve = lazy_import("ray"), lazy_import("ray.serve")  # an optional package, and seconds to import
    ray_exceptions = lazy_import("ray.exceptions")
    engine, run_models = lazy_import("pipelines.inference.engine"), lazy_import("pipelines.inference.run_models")

DEPLOYMENT = "engine"
"""The name of the replicas in their application."""
MAX_STARTS = 2
"""Failures of a replica's start, such as a model that cannot be loaded, before the command fails."""
HEALTH_CHECK_PERIOD_S = 2.0
NOT_INSTALLED = "--ray needs Ray Serve, which is not installed; pip install 'ray[serve]'"


class Replica:
    """The models of a run and their engine in one process of Ray Serve.

    Args:
        working_directory, cache: of the process that serves, for relative paths in the job and for downloaded models.
    """

    def __init__(
        self,
        job: Job,
        run_folder: Path,
        max_slots: int,
        max_context: int | None,
        working_directory: str,
        cache: str | None,
    ) -> None:
        os.chdir(working_directory)
        if cache:
            os.environ["ALFINE_CACHE"] = cache
        models = run_models.RunModels.load(Run.open(run_folder), job)
        self.engine = engine.load_engine(models, max_slots=max_slots, max_context=max_context)

    def context_length(self) -> int:
        """The most tokens of a prompt and its completion."""
        return self.engine.context_length

    async def generate(self, request: GenerationRequest) -> AsyncIterator[AnswerPart]:
        """Yields the parts of an answer. A request that is cancelled ends in the engine as well.

        An AlfineError is yielded: Ray would wrap one that is raised.
        """
        try:
            stream = self.engine.submit(request)
        except AlfineError as error:
            yield error
            return
        try:
            async for delta in stream:
                yield delta, stream.completion if delta.finish_reason is not None else None
        except AlfineError as error:
            yield error
        finally:
            if stream.completion is None:
                stream.cancel()

    def statistics(self) -> engine.EngineStatistics:
        """What the engine of this replica has done."""
        return self.engine.statistics

    def check_health(self) -> None:
        """Called by Ray Serve, which restarts the replica if this raises."""
        if (problem := self.engine.problem) is not None:
            raise RuntimeError(problem)


@contextlib.contextmanager
def ray_engine(
    job: Job, run: Run, num_replicas: int, max_slots: int, max_context: int | None
) -> Iterator[RemoteEngine]:
    """Yields an engine whose requests are answered by replicas on Ray Serve, which end after the block.

    num_replicas: 0 for the number of workers in the config, else one per GPU, or one per node without GPUs.
    max_slots: the most requests that one replica answers at once.

    Raises ConfigError if Ray Serve is not installed or this machine has too few resources, MachineError if Ray cannot
    be reached, and RunError if the replicas do not start.
    """
    with contextlib.ExitStack() as stack:
        _start_serve(stack)
        num_replicas, resources = ray_cluster.resources(job, num_replicas, "--replicas")
        if not os.environ.get("RAY_ADDRESS") and not resources.get("GPU"):
            _check_memory(job, run, num_replicas)
        deployment = serve.deployment(
            name=DEPLOYMENT,
            num_replicas=num_replicas,
            # As many again wait in a replica, so that it has the next request when an answer ends.
            max_ongoing_requests=2 * max_slots,
            max_constructor_retry_count=MAX_STARTS,
            health_check_period_s=HEALTH_CHECK_PERIOD_S,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=5.0,
            ray_actor_options=_actor_options(num_replicas, resources),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )(Replica)
        application = deployment.bind(
            job, run.folder.absolute(), max_slots, max_context, os.getcwd(), os.environ.get("ALFINE_CACHE")
        )
        # Unique: another server of the same run may use the same cluster.
        name = f"alfine-{run.name}-{uuid.uuid4().hex[:8]}"
        stack.callback(_delete, name)
        try:
            handle = serve.run(application, name=name, route_prefix=None)
            context_length = handle.context_length.remote().result()
        except Exception as error:  # Ray raises many kinds, from RuntimeError to those of the replica
            raise RunError(f"the replicas on Ray did not start: {_start_failure(name, error)}") from None
        yield stack.enter_context(
            RemoteEngine(
                handle.options(stream=True).generate.remote,
                context_length,
                num_replicas * max_slots,
                _as_alfine_error,
                functools.partial(_find_problem, name),
            )
        )


def _actor_options(num_replicas: int, resources: dict[str, float]) -> dict[str, Any]:
    others = {kind: amount for kind, amount in resources.items() if kind not in ("CPU", "GPU")}
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": others,
        "runtime_env": ray_cluster.runtime_env(num_replicas, resources),
    }


def _start_serve(stack: contextlib.ExitStack) -> None:
    """Starts Ray Serve, without its own HTTP servers, unless the cluster has it. `stack` ends what this has started."""
    not_installed = ConfigError(NOT_INSTALLED)
    try:
        serve.start  # noqa: B018  # imports it
    except ImportError:
        raise not_installed from None
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    has_connected = ray_cluster.connect(not_installed)
    if has_connected:
        stack.callback(ray.shutdown)  # on this machine it ends Ray; from a cluster it disconnects
    if (os.environ.get("RAY_ADDRESS") or not has_connected) and not has_controller():
        stack.callback(_shut_down_if_unused)
    serve.start(proxy_location="Disabled")


def has_controller() -> bool:
    """Whether the cluster has Ray Serve already."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _delete(name: str) -> None:
    with contextlib.suppress(Exception):  # the cluster may have gone, and with it the replicas
        serve.delete(name)


def _shut_down_if_unused() -> None:
    """Ends Ray Serve, unless others have deployed applications since."""
    with contextlib.suppress(Exception):
        if not serve.status().applications:
            serve.shutdown()


def _find_problem(name: str) -> str | None:
    """Why no replica of an application can answer; None if one can."""
    application = serve.status().applications.get(name)
    if application is None or DEPLOYMENT not in application.deployments:
        return "the replicas have been removed from Ray Serve; start the server again"
    deployment = application.deployments[DEPLOYMENT]
    # Ray's own type of the states is a str with the names of the states as values.
    states = {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}
    if states.get("RUNNING"):
        return None
    starting = states.get("STARTING", 0)
    cause = _cause_of_message(deployment.message)
    return f"no replica is running, {starting} are being started" + (
        f"; the last start failed: {cause}" if cause else ""
    )


def _start_failure(name: str, error: Exception) -> str:
    """Why the replicas of an application did not start. The exception of Ray Serve only says that they did not."""
    cause = None
    with contextlib.suppress(Exception):  # Ray may have gone
        cause = _cause_of_message(serve.status().applications[name].deployments[DEPLOYMENT].message)
    return cause or ray_cluster.error_line(error)


def _cause_of_message(message: str) -> str | None:
    """Why replicas did not start, as one line from the message of their deployment, which ends with a traceback or with
    Ray's description of a dead process. None if the message is about something else."""
    error = message.partition("Error:\n")[2]
    if not error:
        return None
    if re.search(r"actor died|ActorDied|OutOfMemory", error):
        return "the process of a replica has ended, as it does when memory runs out"
    return ray_cluster.error_line(error)


def _as_alfine_error(error: Exception) -> AlfineError:
    """The error for the client that stands for an exception of a request."""
    if isinstance(error, ray_exceptions.RayActorError):
        return UnavailableError("the replica that computed the answer has died; send the request again")
    return RunError(f"a replica failed: {ray_cluster.error_line(error)}")


def _check_memory(job: Job, run: Run, num_replicas: int) -> None:
    """Raises MachineError if the weights of all replicas, which have their own copies, exceed the main memory."""
    folder, model = existing_starting_model(job, run), run.path("model")
    parameters = num_parameters(folder)
    if not (model / "adapter_config.json").is_file():
        parameters += num_parameters(model)
    bits = int((job.quantization or {}).get("bits", 32))
    needed, free = num_replicas * parameters * bits // 8, free_main_memory()
    if needed > free:
        raise MachineError(
            f"the weights of {count(num_replicas, 'replica')} take {needed / 1e9:.1f} GB of main memory; "
            f"{free / 1e9:.1f} GB are free; lower --replicas"
        )
