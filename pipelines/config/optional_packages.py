"""The package that quantization and some optimisers need and that alfine does not bring: asked for before a run does anything."""

from __future__ import annotations

from importlib.util import find_spec

from pipelines.config.job import Job
from pipelines.errors import ConfigError

_OF_BITSANDBYTES = ("lamb", "lars", "lion", "paged_")
"""Optimisers of bitsandbytes, besides those whose name ends in 8bit."""


def check_extras(job: Job) -> None:
    """Raises ConfigError, with the config's lines, for each key that needs bitsandbytes where it is not installed."""
    if find_spec("bitsandbytes") is not None:
        return
    optimizer = (job.trainer.get("optimizer") or {}).get("type", "")
    needing: list[tuple[tuple[str, ...], str]] = []
    if job.quantization:
        needing.append((("quantization",), "take the section out"))
    if optimizer.endswith("8bit") or optimizer.startswith(_OF_BITSANDBYTES):
        needing.append((("trainer", "optimizer", "type"), "write adamw"))
    if needing:
        message = "needs the package bitsandbytes, which is not installed; pip install bitsandbytes, or"
        raise ConfigError([job.problem(f"{'.'.join(path)} {message} {instead}", *path) for path, instead in needing])
