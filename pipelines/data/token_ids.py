"""Token ids in the YAML: each must be one that the model's tokenizer has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.config.job import Job
from pipelines.errors import ConfigError


def check_token_ids(job: Job, vocabulary: int) -> None:
    """Raises ConfigError for each key of `generation:` that names a token of `vocabulary` (their number) or beyond."""
    problems = []
    for key, value in job.ludwig["generation"].items():
        if key.endswith(("_ids", "_token_id", "_tokens")) and key not in ("max_new_tokens", "min_new_tokens"):
            beyond = next((number for number in _numbers(value) if number >= vocabulary), None)
            if beyond is not None:
                message = f"generation.{key} names the token {beyond}, this model's tokens are 0 to {vocabulary - 1}"
                problems.append(job.problem(f"{message}; take it out, or write one of them", "generation", key))
    if problems:
        raise ConfigError(problems)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
