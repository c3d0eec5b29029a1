"""Mixing of tasks: how often each task is sampled in an epoch, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def mixing_weights(
    counts: Mapping[str, int], task_weights: Mapping[str, float], mix: str, temperature: float
) -> dict[str, float]:
    """The fraction of an epoch's rows that each task gets. The fractions add up to 1.

    A task's fraction is proportional to its weight in `task_weights` times a power of its rows (`counts`): rows for
    "proportional", 1 for "equal", rows^(1/T) for "temperature", which is between the two (Raffel et al. 2020,
    "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 3.5.2).
    """
    exponent = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[mix]
    unnormalized = {task: task_weights[task] * count**exponent for task, count in counts.items()}
    total = sum(unnormalized.values())
    return {task: weight / total for task, weight in unnormalized.items()}


def sample_epoch(tasks: Sequence[str], weights: Mapping[str, float], seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The row indices of one epoch. Their number is the number of rows; each task has a fraction of its mixing weight.

    `tasks` has the task of every row. A task that gets more rows than it has repeats them, each once before any comes
    twice; a task that gets fewer leaves rows out, different ones in every epoch. With weights proportional to the rows
    every row comes once. The order depends on `seed` and `epoch` only.
    """
    task_of_row = np.asarray(tasks)
    rows_of_task = {task: np.flatnonzero(task_of_row == task) for task in dict.fromkeys(tasks)}
    quotas = _integer_quotas({task: weights[task] * len(tasks) for task in rows_of_task})
    samples: list[np.ndarray] = []
    for task, rows in rows_of_task.items():
        # All epochs together draw from an endless sequence of permutations of the task's rows.
        start, stop = epoch * quotas[task], (epoch + 1) * quotas[task]
        for repetition in range(start // len(rows), math.ceil(stop / len(rows))):
            permutation = _shuffled(rows, f"{seed}/{task}/{repetition}") if shuffle else rows
            offset = repetition * len(rows)
            samples.append(permutation[max(0, start - offset) : stop - offset])
    indices = np.concatenate(samples)
    ordered = _shuffled(indices, f"{seed}/{epoch}") if shuffle else np.sort(indices)
    return list(ordered.tolist())


def _shuffled(rows: np.ndarray, key: str) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(list(key.encode()))).permutation(rows)


def _integer_quotas(exact: Mapping[str, float]) -> dict[str, int]:
    """Integers with the same sum as `exact`, by the largest remainder method (Hamilton's): all are rounded down, then
    those with the largest remainders are rounded up until the sum is reached."""
    quotas = {task: math.floor(value) for task, value in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for task in sorted(exact, key=lambda task: quotas[task] - exact[task])[:missing]:
        quotas[task] += 1
    return quotas
