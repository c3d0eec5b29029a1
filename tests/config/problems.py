"""Loads invalid configs and returns their problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.errors import ConfigError, Problem

Write = Callable[[str | bytes], Path]
"""The type of the fixture `write`."""


def problems(path: Path, *overrides: str) -> list[Problem]:
    """The problems of a config with overrides. Fails if it loads."""
    with pytest.raises(ConfigError) as caught:
        load_job(path, overrides)
    return caught.value.problems
