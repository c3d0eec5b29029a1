"""Simulated coverage, false-alarm rate and power of the report's statistics: `python -m
tests.benchmarks.statistics_simulation`

Draws data sets with a known true difference and counts how often the 95 % interval covers it, how often a test rejects
when there is no difference, and how often it rejects with `required_sample_size` rows when there is one. Binary scores
are simulated through every step of `compare`, other scores with 1,999 resamples per data set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines.scoring.statistics import bonett_price_interval, bootstrap_interval, compare, mcnemar, sign_flip_test

Floats = NDArray[np.float64]
DATA_SETS = 4000
RESAMPLES = 1999


def rouge(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Differences of two overlap scores with means 40 and 33.3."""
    return 100 * (rng.beta(2, 3, shape) - rng.beta(2, 4, shape))


def mostly_unchanged(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Differences of which four in seven are 0."""
    return rng.choice(np.array([0.0, 0, 0, 0, -10, 25, 50]), shape)


def losses(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Differences of two skewed losses in nats."""
    return rng.gamma(2, 0.4, shape) - rng.gamma(2, 0.6, shape)


KINDS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Floats], float]] = {
    "ROUGE-like": (rouge, 100 * (2 / 5 - 2 / 6)),
    "mostly unchanged": (mostly_unchanged, 65 / 7),
    "losses": (losses, 2 * 0.4 - 2 * 0.6),
}


def undecided(
    draw: Callable[[np.random.Generator, tuple[int, int]], Floats], rng: np.random.Generator
) -> tuple[Floats, int]:
    """Thirty rows without a significant difference, and the required sample size (at most 2,000, to limit the
    simulation)."""
    while True:
        pilot = draw(rng, (1, 30))[0] * 0.6
        needed = compare([0.0] * 30, pilot.tolist(), binary=False).required_sample_size
        if needed is not None and needed <= 2000:
            return pilot, needed


def share(outcomes: NDArray[np.bool_] | list[bool]) -> str:
    """The fraction of true outcomes in percent, with the 95 % error of the simulation."""
    p = float(np.mean(outcomes))
    return f"{100 * p:.1f} ± {196 * (p * (1 - p) / len(outcomes)) ** 0.5:.1f}"


def main() -> None:
    rng = np.random.default_rng(0)
    table = Table("measure", "data", "rows", "nominal", "simulated (%)", box=None)
    for n in (30, 60, 112, 300):
        for rose, fell in ((0.2, 0.1), (0.3, 0.05), (0.15, 0.15)):
            drawn = rng.multinomial(n, [rose, fell, 1 - rose - fell], size=DATA_SETS)
            spans = np.array([bonett_price_interval(int(up), int(down), n) for up, down, _ in drawn])
            truth = 100 * (rose - fell)
            covers = (spans[:, 0] <= truth) & (truth <= spans[:, 1])
            table.add_row(
                "coverage of the interval", f"binary, {rose:.0%} up, {fell:.0%} down", str(n), "95", share(covers)
            )
    for n in (30, 66, 200):
        for name, (draw, truth) in KINDS.items():
            low, high = bootstrap_interval(draw(rng, (DATA_SETS, n)), resamples=RESAMPLES)
            table.add_row("coverage of the interval", name, str(n), "95", share((low <= truth) & (truth <= high)))
    for n in (30, 112, 300):
        drawn = rng.multinomial(n, [0.15, 0.15, 0.7], size=DATA_SETS)
        alarms = [mcnemar(int(up), int(down)) < 0.05 for up, down, _ in drawn]
        table.add_row("false alarms of the test", "binary", str(n), "≤ 5", share(alarms))
    for n in (30, 66):
        for name, (draw, _) in KINDS.items():
            no_difference = draw(rng, (DATA_SETS, n)) * rng.choice([-1, 1], (DATA_SETS, n))
            table.add_row(
                "false alarms of the test",
                name,
                str(n),
                "5",
                share(sign_flip_test(no_difference, resamples=999) <= 0.05),
            )
    for num_increased, num_decreased, n in ((12, 8, 100), (9, 4, 66), (20, 14, 112)):
        base = [0] * num_increased + [100] * (n - num_increased)
        tuned = [100] * num_increased + [0] * num_decreased + [100] * (n - num_increased - num_decreased)
        needed = compare(base, tuned, binary=True).required_sample_size
        assert needed is not None
        drawn = rng.multinomial(
            needed, [num_increased / n, num_decreased / n, 1 - (num_increased + num_decreased) / n], size=DATA_SETS
        )
        rejected = [mcnemar(int(up), int(down)) < 0.05 for up, down, _ in drawn]
        table.add_row(
            "power with the required sample size",
            f"binary, {num_increased} up, {num_decreased} down of {n}",
            f"{needed:,}",
            "80",
            share(rejected),
        )
    for name, (draw, _) in KINDS.items():
        pilot, needed = undecided(draw, rng)
        rejected = sign_flip_test(rng.choice(pilot, (1000, needed)), resamples=499) <= 0.05
        table.add_row(
            "power with the required sample size", f"{name}, a pilot of 30", f"{needed:,}", "80", share(rejected)
        )
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
