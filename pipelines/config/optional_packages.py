"""Checks before a run that the optional packages which its config needs are installed."""

from __future__ import annotations

from importlib.util import find_spec

from pipelines.config.job import Job
from pipelines.errors import ConfigError

_BITSANDBYTES_PREFIXES = ("lamb", "lars", "lion", "paged_")
"""Prefixes of bitsandbytes' optimizers, besides those whose names end in 8bit."""


def check_optional_packages(job: Job) -> None:
    """Raises ConfigError, with locations, for every key that needs bitsandbytes if it is not installed."""
    if find_spec("bitsandbytes") is not None:
        return
    optimizer = (job.trainer.get("optimizer") or {}).get("type", "")
    needed_by: list[tuple[tuple[str, ...], str]] = []
    if job.quantization:
        needed_by.append((("quantization",), "remove the section"))
    if optimizer.endswith("8bit") or optimizer.startswith(_BITSANDBYTES_PREFIXES):
        needed_by.append((("trainer", "optimizer", "type"), "write adamw"))
    if needed_by:
        message = "requires the package bitsandbytes, which is not installed; pip install bitsandbytes, or"
        raise ConfigError(
            [job.problem(f"{'.'.join(path)} {message} {alternative}", *path) for path, alternative in needed_by]
        )
