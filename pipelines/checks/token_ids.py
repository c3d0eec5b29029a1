"""Token ids in the section `generation` of a config, checked against the model's vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.config.job import Job
from pipelines.errors import ConfigError

_COUNTS = ("max_new_tokens", "min_new_tokens")
"""Keys that end like keys with token ids but hold a number of tokens."""


def check_token_ids(job: Job, vocab_size: int) -> None:
    """Raises ConfigError for every key of `generation` with a token id of `vocab_size` or more."""
    problems = []
    for key, value in job.generation.items():
        if key.endswith(("_ids", "_token_id", "_tokens")) and key not in _COUNTS:
            invalid = next((token for token in _integers(value) if token >= vocab_size), None)
            if invalid is not None:
                message = (
                    f"generation.{key} names the token {invalid}, but this model's tokens are 0 to {vocab_size - 1}"
                )
                problems.append(job.problem(f"{message}; remove it, or write one of them", "generation", key))
    if problems:
        raise ConfigError(problems)


def _integers(value: Any) -> Iterator[int]:
    """Every integer in `value`, an integer or lists of them of any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
