"""Mixing of tasks: how many rows of each task an epoch has, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def mixing_weights(
    counts: Mapping[str, int], weights: Mapping[str, float], mix: str, temperature: float
) -> dict[str, float]:
    """The share of an epoch's rows that each task gets; the shares add up to 1.

    proportional: by its rows; equal: the same for each; temperature: rows^(1/T), between the two
    (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", 3.5.2). Each is multiplied by `weights`.
    """
    exponent = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[mix]
    raw = {task: weights[task] * count**exponent for task, count in counts.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


def sample_epoch(tasks: Sequence[str], shares: Mapping[str, float], seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The row numbers of one epoch, as many as there are rows, each task by its share.

    A task with a larger share than it has rows repeats them (every row once before any comes twice);
    one with a smaller share leaves some out, others in each epoch. With proportional shares every row comes once.
    """
    import numpy as np

    named = np.asarray(tasks)
    members = {task: np.flatnonzero(named == task) for task in dict.fromkeys(tasks)}
    quotas = _quotas({task: shares[task] * len(tasks) for task in members})
    order: list[np.ndarray] = []
    for task, rows in members.items():
        drawn = range(epoch * quotas[task], (epoch + 1) * quotas[task])
        for lap in range(drawn.start // len(rows), math.ceil(drawn.stop / len(rows))):
            whole = _shuffled(rows, f"{seed}/{task}/{lap}") if shuffle else rows
            order.append(whole[max(0, drawn.start - lap * len(rows)) : drawn.stop - lap * len(rows)])
    together = np.concatenate(order)
    ordered = _shuffled(together, f"{seed}/{epoch}") if shuffle else np.sort(together)
    return list(ordered.tolist())


def _shuffled(rows: np.ndarray, key: str) -> np.ndarray:
    import numpy as np

    return np.random.Generator(np.random.PCG64(list(key.encode()))).permutation(rows)


def _quotas(exact: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers with the same sum, the largest remainders rounded up."""
    quotas = {task: math.floor(value) for task, value in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for task in sorted(exact, key=lambda task: quotas[task] - exact[task])[:missing]:
        quotas[task] += 1
    return quotas
