"""Paired statistics of two models on the same test rows.

Binary scores: McNemar's exact test, and the confidence interval of Bonett and Price. Other scores: a sign-flip
permutation test, and a bootstrap interval. Neither assumes normal scores. Rows that share a document are not
independent: with `clusters`, complete documents are resampled and flipped.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = lazy_import("scipy.stats")  # 1 s that a verb without a comparison does not need

Floats = NDArray[np.float64]

RESAMPLES = 9_999
ALPHA = 0.05
POWER = 0.8
MIN_ROWS_FOR_SIGNIFICANCE = 6
"""The smallest number of rows with which a difference can be significant: if all of five rows change in the same
direction, the p-value is 2 / 2**5 = .0625."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of two models on the same `n` rows, in the unit of the scores (0…100, or nats)."""

    n: int
    base: float
    """Mean score of the base model."""
    tuned: float
    """Mean score of the tuned model."""
    delta: float
    """`tuned - base`."""
    ci95: tuple[float, float]
    """95 % interval of `delta`."""
    p_value: float
    """Two-sided p-value of the null hypothesis of no difference, not corrected for multiple comparisons (see
    `holm`)."""
    num_increased: int
    """Number of rows whose score rose; for binary scores, from 0 to 100."""
    num_decreased: int
    """Number of rows whose score fell."""
    required_sample_size: int | None
    """Approximate number of rows for 80 % power at the observed effect size. None if the difference is significant or
    `delta` is 0."""


def is_significant(p_value: float, ci95: tuple[float, float], alpha: float = ALPHA) -> bool:
    """Whether the test rejects the hypothesis of no difference at the level `alpha` and the 95 % interval excludes
    0."""
    return p_value < alpha and not ci95[0] <= 0 <= ci95[1]


def compare(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    binary: bool,
    clusters: Sequence[Hashable] | None = None,
    num_comparisons: int = 1,
    seed: int = 0,
) -> Comparison:
    """Compares two models row by row: `base[i]` and `tuned[i]` are scores of the same row.

    `binary` scores are 0 or 100. Rows with equal `clusters[i]` form a cluster (such as questions on one document).
    `num_comparisons` is the number of tasks in the report; it only affects `required_sample_size`, which is computed
    for the level ALPHA / num_comparisons. `seed` makes the resampling deterministic. If all rows change by the same
    amount, the bootstrap interval has zero width, and only the p-value expresses the uncertainty. Raises DataError if
    there are no rows, if the numbers of rows differ, and if a score is not finite or, if binary, neither 0 nor 100.
    """
    before, after = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    _check(before, after, binary=binary)
    difference = after - before
    num_increased, num_decreased = int((difference > 0).sum()), int((difference < 0).sum())
    differences_per_cluster, rows_per_cluster = difference, 1.0
    if clusters is not None and len(set(clusters)) < difference.size:
        sums, sizes = _cluster_sums(difference, clusters)
        rows_per_cluster = difference.size / sums.size
        differences_per_cluster = sums / rows_per_cluster  # scaled, so that their mean is the mean over rows
        ci95 = _cluster_interval(sums, sizes, seed)
        p_value = float(sign_flip_test(differences_per_cluster, seed=seed))
    elif binary:
        ci95, p_value = (
            bonett_price_interval(num_increased, num_decreased, difference.size),
            mcnemar(num_increased, num_decreased),
        )
    else:
        low, high = bootstrap_interval(difference, seed=seed)
        ci95, p_value = (float(low), float(high)), float(sign_flip_test(difference, seed=seed))
    level = ALPHA / num_comparisons
    is_significant_corrected = is_significant(p_value, ci95, level)
    required = None
    if not is_significant_corrected:
        required = _required_sample_size(differences_per_cluster, rows_per_cluster, level)
    return Comparison(
        n=difference.size,
        base=float(before.mean()),
        tuned=float(after.mean()),
        delta=float(difference.mean()),
        ci95=ci95,
        p_value=p_value,
        num_increased=num_increased,
        num_decreased=num_decreased,
        required_sample_size=required,
    )


def _cluster_sums(difference: Floats, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """The sum and the number of the rows of each cluster, in the order of the first rows of the clusters."""
    cluster_index = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    indices = [cluster_index[cluster] for cluster in clusters]
    return np.bincount(indices, weights=difference), np.bincount(indices).astype(float)


def _cluster_interval(sums: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean over rows. The ratio estimator is linearized (Cochran, Sampling Techniques, 3rd ed.
    1977, ch. 6), so that clusters of different sizes are weighted by their rows."""
    mean = float(sums.sum() / sizes.sum())
    low, high = bootstrap_interval(mean + (sums - mean * sizes) * (sums.size / sizes.sum()), seed=seed)
    return float(low), float(high)


def mcnemar(num_increased: int, num_decreased: int) -> float:
    """The two-sided p-value of McNemar's exact test: a binomial test of `num_increased` out of all changed rows against
    1/2; 1.0 if no row changed. (McNemar, Psychometrika 12, 1947, 153–157.)"""
    changed = num_increased + num_decreased
    return float(stats.binomtest(num_increased, changed).pvalue) if changed else 1.0


def bonett_price_interval(num_increased: int, num_decreased: int, n: int) -> tuple[float, float]:
    """The 95 % interval, in points (−100…100), of a paired difference of two proportions,
    `(num_increased - num_decreased) / n`.

    Wald's interval with one row added to each kind of change: conservative if few rows change, where Wald's own
    interval is far too narrow (0 to 0 if no row changes). (Bonett and Price, J. Educ. Behav. Stat. 37, 2012, 479–488.)
    """
    p_increase, p_decrease = (num_increased + 1) / (n + 2), (num_decreased + 1) / (n + 2)
    center = p_increase - p_decrease
    half = _normal_quantile(ALPHA / 2) * math.sqrt((p_increase + p_decrease - center**2) / (n + 2))
    return 100 * max(center - half, -1.0), 100 * min(center + half, 1.0)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval, in percent, of a proportion. (Wilson, JASA 22, 1927, 209–212.)"""
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def bootstrap_interval(difference: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """The 95 % interval of the mean over the last axis of `difference`, bias-corrected and accelerated (BCa).

    (Efron, JASA 82, 1987, 171–185.) The percentiles are expanded by `sqrt(n / (n - 1))` and by Student's t instead of
    the normal distribution: a nominal 95 % BCa interval of 30 rows covers only 92 to 94 %. (Hesterberg, What Teachers
    Should Know About the Bootstrap, The American Statistician 69, 2015, 371–386.) Equal differences d give [d, d].
    """
    n = difference.shape[-1]
    if np.allclose(difference, difference[..., :1], rtol=0, atol=1e-9):
        return difference.mean(axis=-1), difference.mean(axis=-1)
    tail = float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(ALPHA / 2, n - 1)))
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        confidence_level=1 - 2 * max(tail, 1e-6),  # with two or three rows, the range of the resampled means
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def pigeonhole_bootstrap_interval(scores: Floats, *, seed: int = 0, resamples: int = 2_000) -> tuple[float, float]:
    """The 95 % interval of the mean of `scores`, of shape [seeds, items], by the pigeonhole bootstrap: both seeds and
    items are resampled, with one seed only items. (Owen, Ann. Appl. Stat. 1, 2007, 386–411.)"""
    rng = np.random.default_rng(seed)
    seeds, items = scores.shape
    means = np.empty(resamples)
    for index in range(resamples):
        weights = np.bincount(rng.integers(0, items, items), minlength=items)
        means[index] = (scores[rng.integers(0, seeds, seeds)] @ weights).mean() / items
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def sign_flip_test(difference: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """The two-sided p-value, over the last axis, of a permutation test of a mean of 0: if the models are equal, the
    sign of each difference is random. Enumerates all sign patterns for up to 13 rows, and samples them for more."""
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
    """The p-values, in the same order, with Holm's correction: the family-wise error rate at the level .05 is at most
    .05. (Holm, Scand. J. Stat. 6, 1979, 65–70.)"""
    # Not statsmodels: its import takes longer than a report of a hundred rows.
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _required_sample_size(difference: Floats, rows_per_cluster: float, level: float) -> int | None:
    """The number of rows for the power POWER at `level`, None if the mean difference is 0.

    Uses the standard deviations under the null hypothesis and around the observed difference. For binary scores this is
    Connor's formula for McNemar's test (Biometrics 43, 1987, 207–211). `difference` is per row, or per cluster of
    `rows_per_cluster` rows on average.
    """
    mean = float(difference.mean())
    if math.isclose(mean, 0, abs_tol=1e-9):
        return None
    sd_null = math.sqrt(float((difference**2).mean()))
    sd_observed = float(difference.std())
    size = ((_normal_quantile(level / 2) * sd_null + _normal_quantile(1 - POWER) * sd_observed) / mean) ** 2
    return math.ceil(rows_per_cluster * max(math.ceil(size), difference.size + 1, MIN_ROWS_FOR_SIGNIFICANCE))


@cache
def _normal_quantile(tail: float) -> float:
    """The quantile of the standard normal distribution with the probability `tail` above it."""
    return float(stats.norm.isf(tail))


def _check(before: Floats, after: Floats, *, binary: bool) -> None:
    if before.shape != after.shape or before.ndim != 1:
        raise DataError(f"base has {before.size} scores and tuned {after.size}; both are required for every row")
    if not before.size:
        raise DataError("no rows to compare; add test rows to the task, or use a metric that can score them")
    scores = np.concatenate([before, after])
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0]) % before.size
        raise DataError(f"row {row} of {before.size} has a score that is not a finite number")
    if binary and not np.isin(scores, (0, 100)).all():
        invalid = scores[~np.isin(scores, (0, 100))][0]
        raise DataError(f"a binary score must be 0 or 100, not {invalid:g}")
