"""Paired statistics: the same test rows answered by two models, so each row is its own control.

Right-or-wrong scores: McNemar's exact test, and the interval of Bonett and Price. Other scores: a test that
flips signs, and a bootstrap interval. Neither needs the scores to be normal. Rows that share a document are
no independent witnesses: given clusters, whole documents are resampled and flipped.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pipelines.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 9_999
ALPHA = 0.05
POWER = 0.8
FEWEST = 6
"""With five rows that all changed the same way the p-value is 2 / 2**5 = .0625: no test can tell."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same `n` rows, in the unit of the scores (0…100, or nats)."""

    n: int
    base: float
    """Mean score."""
    tuned: float
    delta: float
    """`tuned - base`."""
    ci95: tuple[float, float]
    """95 % interval of `delta`."""
    p_value: float
    """Two-sided, of no difference; not corrected for how many comparisons are made (see `holm`)."""
    gained: int
    """Rows where the score rose: wrong → right for right-or-wrong scores."""
    lost: int
    """Rows where it fell."""
    required_sample_size: int | None
    """Approximate number of rows for 80 % power at the observed effect size. None if the difference is significant
    already, and if `delta` is 0."""


def is_significant(p_value: float, ci95: tuple[float, float], alpha: float = ALPHA) -> bool:
    """Whether the test rejects a difference of 0 at the level `alpha` and the 95 % interval excludes 0."""
    return p_value < alpha and not ci95[0] <= 0 <= ci95[1]


def compare(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    binary: bool,
    clusters: Sequence[Hashable] | None = None,
    comparisons: int = 1,
    seed: int = 0,
) -> Comparison:
    """Compare two models row by row: `base[i]` and `tuned[i]` are scores of the same row.

    `binary` scores are 0 or 100. Rows with equal `clusters[i]` belong together (questions on one document).
    `comparisons`: how many tasks the reader will see; for `required_sample_size` alone, which then counts on the level
    that the correction leaves (ALPHA / comparisons). `seed` fixes the resampling, so the same scores give the
    same numbers. Where all rows change by the same amount the bootstrap knows no spread and the interval is
    that one number; the p-value alone tells how sure it is. Raises DataError for no rows, unequal numbers of
    rows, and scores that are not finite or, if binary, neither 0 nor 100.
    """
    import numpy as np

    before, after = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    _check(before, after, binary=binary)
    difference = after - before
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    units, rows_per_unit = difference, 1.0
    if clusters is not None and len(set(clusters)) < difference.size:
        sums, sizes = _cluster_sums(difference, clusters)
        rows_per_unit = difference.size / sums.size
        units = sums / rows_per_unit  # their mean is that of the rows
        ci95 = _cluster_interval(sums, sizes, seed)
        p_value = float(sign_flip_test(units, seed=seed))
    elif binary:
        ci95, p_value = paired_interval(gained, lost, difference.size), mcnemar(gained, lost)
    else:
        low, high = bootstrap_interval(difference, seed=seed)
        ci95, p_value = (float(low), float(high)), float(sign_flip_test(difference, seed=seed))
    level = ALPHA / comparisons
    is_certain = is_significant(p_value, ci95, level)
    return Comparison(
        n=difference.size,
        base=float(before.mean()),
        tuned=float(after.mean()),
        delta=float(difference.mean()),
        ci95=ci95,
        p_value=p_value,
        gained=gained,
        lost=lost,
        required_sample_size=None if is_certain else _required_sample_size(units, rows_per_unit, level),
    )


def _cluster_sums(difference: Floats, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sum and number of the rows of each cluster, in the order in which the clusters come."""
    import numpy as np

    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    index = [numbers[cluster] for cluster in clusters]
    return np.bincount(index, weights=difference), np.bincount(index).astype(float)


def _cluster_interval(sums: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """95 % interval of the rows' mean: the mean is linearised (each cluster's sum minus the share that the
    mean gives it), so that clusters of unequal size count with the rows they have. (Cochran, Sampling
    Techniques, 3rd ed. 1977, ch. 6: the ratio estimator.)"""
    mean = float(sums.sum() / sizes.sum())
    low, high = bootstrap_interval(mean + (sums - mean * sizes) * (sums.size / sizes.sum()), seed=seed)
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: are `gained` of the rows that changed more, or fewer, than a
    fair coin gives? 1.0 where no row changed. (McNemar, Psychometrika 12, 1947, 153–157.)"""
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(gained, changed).pvalue) if changed else 1.0


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval, in points (−100…100), of a paired difference of two proportions, `(gained - lost) / n`.

    Wald's interval with one row added to each kind of change: where few rows change it covers too often
    rather than too rarely. Plain Wald is far too narrow there, 0 to 0 where none does. (Bonett and Price,
    J. Educ. Behav. Stat. 37, 2012, 479–488.)
    """
    rose, fell = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    center = rose - fell
    half = _z(ALPHA / 2) * math.sqrt((rose + fell - center**2) / (n + 2))
    return 100 * max(center - half, -1.0), 100 * min(center + half, 1.0)


def proportion_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval, in percent, of a share. (Wilson, JASA 22, 1927, 209–212.)"""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def bootstrap_interval(difference: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """95 % interval of the mean over the last axis of `difference`, bias-corrected and accelerated (BCa).

    Efron, JASA 82, 1987, 171–185. The level is raised by `sqrt(n / (n - 1))` and from the normal to Student's
    t: plain BCa over 30 rows covers 92 to 94 % where it says 95. (Hesterberg, What Teachers Should Know About
    the Bootstrap, The American Statistician 69, 2015, 371–386: "expanded".) Equal differences give [d, d].
    """
    import numpy as np
    from scipy import stats

    n = difference.shape[-1]
    if np.allclose(difference, difference[..., :1], rtol=0, atol=1e-9):
        return difference.mean(axis=-1), difference.mean(axis=-1)
    tail = float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(ALPHA / 2, n - 1)))
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        confidence_level=1 - 2 * max(tail, 1e-6),  # two or three rows: from the least to the greatest
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def crossed_interval(scores: Floats, *, seed: int = 0, resamples: int = 2_000) -> tuple[float, float]:
    """95 % interval of the mean of `scores` [seeds, items], where other seeds and other items could have been met:
    both are resampled. (Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007, 386–411.) With one seed it is over
    items."""
    import numpy as np

    chance = np.random.default_rng(seed)
    seeds, items = scores.shape
    means = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(chance.integers(0, items, items), minlength=items)
        means[number] = (scores[chance.integers(0, seeds, seeds)] @ weights).mean() / items
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def sign_flip_test(difference: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Two-sided p-value, over the last axis, of a mean of 0: were the models alike, each row's difference
    could as well have the other sign. Tries all patterns of signs up to 13 rows, and random ones above."""
    import numpy as np
    from scipy import stats

    if difference.shape[-1] == 1:
        return np.ones(difference.shape[:-1])
    p_value: Floats = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        axis=-1,
        n_resamples=resamples,
        batch=100,
        rng=np.random.default_rng(seed),
    ).pvalue
    return p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in their order: if those below .05 are called real, the
    chance of even one false alarm stays below .05. (Holm, Scand. J. Stat. 6, 1979, 65–70.)"""
    # Four lines of our own: importing statsmodels for them takes longer than a report of a hundred rows.
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _required_sample_size(difference: Floats, rows_per_unit: float, level: float) -> int | None:
    """For binary scores this is Connor's formula for McNemar's test (Biometrics 43, 1987, 207–211), with
    the spread that flipped signs have and the spread around the difference observed. `difference` is per row,
    or per cluster of `rows_per_unit` rows on average."""
    mean = float(difference.mean())
    if math.isclose(mean, 0, abs_tol=1e-9):
        return None
    without = math.sqrt(float((difference**2).mean()))
    around = float(difference.std())
    units = ((_z(level / 2) * without + _z(1 - POWER) * around) / mean) ** 2
    return math.ceil(rows_per_unit * max(math.ceil(units), difference.size + 1, FEWEST))


@cache
def _z(tail: float) -> float:
    """The standard normal's upper quantile."""
    from scipy.stats import norm

    return float(norm.isf(tail))


def _check(before: Floats, after: Floats, *, binary: bool) -> None:
    import numpy as np

    if before.shape != after.shape or before.ndim != 1:
        raise DataError(f"base has {before.size} scores and tuned {after.size}; give both for every row")
    if not before.size:
        raise DataError("there is no row to compare; give the task test rows, or a metric that can score them")
    scores = np.concatenate([before, after])
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0]) % before.size
        raise DataError(f"row {row} of {before.size} has a score that is not a finite number")
    if binary and not np.isin(scores, (0, 100)).all():
        strange = scores[~np.isin(scores, (0, 100))][0]
        raise DataError(f"a right-or-wrong score must be 0 or 100, not {strange:g}")
