"""Checks before a run that the optional packages which its config needs are installed."""

from __future__ import annotations

import re
from importlib import metadata

from pipelines.config.job import Job
from pipelines.config.optimizer_checks import is_from_bitsandbytes, optimizer_type
from pipelines.errors import ConfigError

OLDEST_BITSANDBYTES = (0, 50)
"""The first version whose optimizers run on a CPU, and whose arguments are those that alfine passes."""


def check_optional_packages(job: Job) -> None:
    """Raises ConfigError, with locations, for every key that needs bitsandbytes if it is missing or too old."""
    needed_by: list[tuple[tuple[str, ...], str]] = []
    if job.quantization:
        needed_by.append((("quantization",), "remove the section"))
    if is_from_bitsandbytes(optimizer_type(job.trainer)):
        needed_by.append((("trainer", "optimizer", "type"), "write adamw"))
    if not needed_by:
        return
    version = installed_version("bitsandbytes")
    if version is None:
        problem, command = "which is not installed", "pip install bitsandbytes"
    elif tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_BITSANDBYTES:
        required = ".".join(map(str, OLDEST_BITSANDBYTES))
        problem = f"version {required} or later, and {version} is installed"
        command = "pip install --upgrade bitsandbytes"
    else:
        return
    message = f"requires the package bitsandbytes, {problem}; {command}, or"
    raise ConfigError(
        [job.problem(f"{'.'.join(path)} {message} {alternative}", *path) for path, alternative in needed_by]
    )


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
