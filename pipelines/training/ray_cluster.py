"""The Ray cluster: the connection, and the resources of the workers of training, evaluation and serving."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.errors import ConfigError, MachineError
from pipelines.registry import lazy_import
from pipelines.storage.environment import WORKERS_PER_MACHINE

if TYPE_CHECKING:
    import ray
else:
    ray = lazy_import("ray")  # an optional package, and 1 s to import

_CLASS_OF_ERROR = re.compile(r"^pipelines\.[\w.]+: ")
"""What Python writes before the message of an AlfineError."""


def connect(not_installed: ConfigError) -> bool:
    """Connects to the cluster at RAY_ADDRESS, or starts one on this machine.

    Returns False if this process was connected before. Raises `not_installed` without Ray, and MachineError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would warn about the number of threads, which torch decides here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        is_connected = ray.is_initialized()
    except ImportError:
        raise not_installed from None
    if is_connected:
        return False
    address = os.environ.get("RAY_ADDRESS")
    local_settings = {} if address else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="CRITICAL", **local_settings)
    except Exception as error:  # Ray raises many kinds, and Exception itself on a machine that is too busy
        reason = next(iter(str(error).splitlines()), "unknown reason")
        raise MachineError(f"cannot connect to Ray or start it ({address or 'this machine'}): {reason}") from None
    return True


def resources(job: Job, num_workers: int = 0, option: str = "") -> tuple[int, dict[str, float]]:
    """Returns the number of workers, which is `num_workers` unless that is 0, and the resources of each.

    The default is one worker per GPU, or one per node if there is no GPU. Raises ConfigError if a worker would have
    another number of GPUs than one or none, or if this machine, without a cluster, has too few resources.

    option: the option of the command that gave `num_workers`, for messages.
    """
    settings = job.backend.get("trainer", {})
    available = ray.cluster_resources()
    use_gpu = bool(settings.get("use_gpu", available.get("GPU", 0) > 0))
    name = option if num_workers else "backend.trainer"
    num_workers = int(
        num_workers or settings.get("num_workers") or (available.get("GPU", 0) if use_gpu else len(ray.nodes()))
    )
    resources_per_worker = {**({"GPU": 1} if use_gpu else {}), **(settings.get("resources_per_worker") or {"CPU": 1})}
    if (num_gpus := resources_per_worker.get("GPU", 0)) != int(use_gpu):
        reason = "a worker computes on one GPU of its own" if use_gpu else "use_gpu is false"
        message = f"backend.trainer.resources_per_worker.GPU is {num_gpus:g}, but {reason}; write GPU: {int(use_gpu)}"
        raise ConfigError(job.problem(message, "backend", "trainer", "resources_per_worker"))
    if not os.environ.get("RAY_ADDRESS"):
        # A cluster may be extended later. On a single machine, Ray would wait forever.
        for kind, amount in resources_per_worker.items():
            if amount * num_workers > available.get(kind, 0):
                message = (
                    f"{name} requests {num_workers} × {amount:g} {kind}, this machine has {available.get(kind, 0):g}"
                )
                raise ConfigError(job.problem(message, "backend", "trainer"))
    return num_workers, dict(resources_per_worker)


def runtime_env(num_workers: int, resources_per_worker: Mapping[str, float]) -> dict[str, Any]:
    """Returns Ray's `runtime_env` of the workers.

    It hides the GPUs from workers that are to compute on the CPU, and tells workers how many of them may share the main
    memory of a machine.
    """
    variables = {}
    if not resources_per_worker.get("GPU") and ray.cluster_resources().get("GPU", 0) > 0:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if (sharing := max_workers_per_node(num_workers, resources_per_worker)) > 1:
        variables[WORKERS_PER_MACHINE] = str(sharing)
    return {"env_vars": variables} if variables else {}


def max_workers_per_node(num_workers: int, resources_per_worker: Mapping[str, float]) -> int:
    """Returns the most workers that Ray may place on one node."""
    amounts = {kind: amount for kind, amount in resources_per_worker.items() if amount > 0}
    fitting = [
        min((int(node["Resources"].get(kind, 0) // amount) for kind, amount in amounts.items()), default=num_workers)
        for node in ray.nodes()
    ]
    return min(num_workers, max(fitting, default=num_workers))


def error_line(error: BaseException | str) -> str:
    """Returns one line about an exception of a worker: the message of an AlfineError, else the last line of its text.

    Ray's own errors are long, and quote the traceback of the worker.
    """
    return _CLASS_OF_ERROR.sub("", last_line(error))


def last_line(error: BaseException | str) -> str:
    """Returns the last line of an error's text, which in Ray's errors is the original exception."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "unknown reason")
