"""The registry of the checks: what each measures, the bounds on its measurements, and the time that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Measurements = dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """A limit on a measurement. On a CPU only bounds that are `portable` count: the dry run has no speed to judge."""

    measurement: str
    comparison: str
    limit: float
    portable: bool = False

    def holds(self, measurements: Measurements) -> bool:
        """Whether the measurement is there and within the limit."""
        value = measurements.get(self.measurement)
        if not isinstance(value, int | float):
            return False
        return value <= self.limit if self.comparison == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.measurement} {self.comparison} {self.limit:g}"


def at_most(measurement: str, limit: float, *, portable: bool = False) -> Bound:
    return Bound(measurement, "<=", limit, portable)


def at_least(measurement: str, limit: float, *, portable: bool = False) -> Bound:
    return Bound(measurement, ">=", limit, portable)


@dataclass
class Context:
    """What a check works with. `folder` is scratch space that all checks of a part share."""

    device: str
    folder: Path
    record: Callable[[str, Measurements], None] = lambda name, measurements: None
    """Writes an intermediate result at once, so that a check that is cut loses only the rest."""
    deadline: float = field(default_factory=lambda: time.monotonic() + 3600)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Check:
    """A check: `function(context)` returns measurements, each bound refers to one of them.

    `seconds` is an estimate on an H100. A check does not start if less time is left.
    """

    name: str
    part: int
    seconds: float
    bounds: tuple[Bound, ...]
    function: Callable[[Context], Measurements]
    needs_gpu: bool

    @property
    def description(self) -> str:
        return (self.function.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")


CHECKS: list[Check] = []
"""All checks, in the order of `tests.gpu_acceptance.all_checks.ORDER`."""


def check(
    part: int, seconds: float, *bounds: Bound, needs_gpu: bool = False
) -> Callable[[Callable[[Context], Measurements]], Callable[[Context], Measurements]]:
    """Registers a function as a check of the same name."""

    def register(function: Callable[[Context], Measurements]) -> Callable[[Context], Measurements]:
        CHECKS.append(Check(function.__name__, part, seconds, bounds, function, needs_gpu))
        return function

    return register
