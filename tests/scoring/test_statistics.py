"""Known values, and the coverage of the intervals: exact if all outcomes can be enumerated, else by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipelines.errors import DataError
from pipelines.scoring.statistics import (
    Comparison,
    bonett_price_interval,
    bootstrap_interval,
    compare,
    holm,
    is_significant,
    mcnemar,
    sign_flip_test,
)

Floats = NDArray[np.float64]


def binary(increased: int, decreased: int, both_right: int, both_wrong: int) -> Comparison:
    base = [0] * increased + [100] * decreased + [100] * both_right + [0] * both_wrong
    tuned = [100] * increased + [0] * decreased + [100] * both_right + [0] * both_wrong
    return compare(base, tuned, binary=True)


def test_binary_comparison() -> None:
    result = binary(increased=15, decreased=5, both_right=60, both_wrong=20)
    assert (result.n, result.base, result.tuned, result.delta) == (100, 65.0, 75.0, 10.0)
    assert (result.num_increased, result.num_decreased) == (15, 5)
    # 2 * P(X >= 15), X ~ Bin(20, 1/2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(20, k) for k in range(15, 21)) / 2**20)
    # (16 - 6) / 102 ± 1.96 * sqrt((22 / 102 - (10 / 102)**2) / 102), by hand
    assert result.ci95 == pytest.approx((0.994, 18.614), abs=0.005)


def test_same_scores_twice() -> None:
    for scores in ([0.0, 100.0] * 20, [100.0] * 40):
        result = compare(scores, scores, binary=True)
        assert (result.delta, result.p_value, result.required_sample_size) == (0.0, 1.0, None)
        assert result.ci95[0] == -result.ci95[1]
        assert result.ci95[1] > 1  # forty equal rows do not prove that the models are equal
        result = compare(scores, scores, binary=False)
        assert (result.delta, result.ci95, result.p_value, result.required_sample_size) == (0.0, (0.0, 0.0), 1.0, None)


def test_mean_comparison() -> None:
    base = np.array([20.0, 35, 50, 10, 40, 30, 25, 60, 45, 15])
    tuned = base + [5, 8, -2, 12, 6, 0, 9, 3, 7, 4]
    result = compare(base.tolist(), tuned.tolist(), binary=False)
    assert (result.n, result.num_increased, result.num_decreased) == (10, 8, 1)
    assert (result.base, result.tuned, result.delta) == pytest.approx((33.0, 38.2, 5.2))
    low, high = result.ci95
    assert 1 < low < 5.2 < high < 9
    # Of the 2**9 sign patterns, two on each side are as extreme: the observed one and the one without -2.
    assert result.p_value == pytest.approx(4 / 512)
    assert result == compare(base.tolist(), tuned.tolist(), binary=False)
    assert result.ci95 != compare(base.tolist(), tuned.tolist(), binary=False, seed=1).ci95


def test_losses_have_their_sign() -> None:
    result = compare([2.0, 3.0, 2.5, 2.2] * 5, [1.0, 1.5, 1.5, 1.2] * 5, binary=False)
    assert result.delta < 0
    assert result.ci95[0] < result.delta < result.ci95[1] < 0
    assert (result.num_increased, result.num_decreased) == (0, 20)


@pytest.mark.parametrize("is_binary", [True, False])
def test_one_row_is_never_significant(is_binary: bool) -> None:
    result = compare([0], [100], binary=is_binary)
    assert (result.n, result.delta, result.p_value) == (1, 100.0, 1.0)
    assert result.required_sample_size == 6
    assert result.ci95[0] <= 100.0 == result.ci95[1]


def test_equal_differences_give_an_interval_of_zero_width() -> None:
    result = compare([0.1, 0.2, 0.3] * 4, [1.1, 1.2, 1.3] * 4, binary=False)
    assert result.ci95 == pytest.approx((1.0, 1.0))
    assert result.p_value == pytest.approx(2 / 2**12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 3, 4, 6, 10])
def test_few_rows_give_a_finite_interval_around_the_difference(n: int) -> None:
    rng = np.random.default_rng(n)
    one_changed = np.zeros(n)
    one_changed[0] = 5
    for difference in (rng.normal(size=n), rng.integers(-1, 2, n).astype(float), one_changed):
        result = compare([0.0] * n, difference.tolist(), binary=False)
        low, high = result.ci95
        assert difference.min() <= low <= result.delta <= high <= difference.max()
        assert 0 < result.p_value <= 1


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_binary_interval_contains_the_difference_and_is_symmetric(n: int) -> None:
    for increased in range(n + 1):
        for decreased in range(n + 1 - increased):
            low, high = bonett_price_interval(increased, decreased, n)
            assert -100 <= low <= 100 * (increased - decreased) / n <= high <= 100
            assert bonett_price_interval(decreased, increased, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("base", "tuned", "is_binary", "problem"),
    [
        ([], [], True, "no rows to compare"),
        ([], [], False, "no rows to compare"),
        ([1.0], [1.0, 2.0], False, "base has 1 scores and tuned 2"),
        ([1.0, math.nan], [1.0, 2.0], False, "row 1 of 2 has a score that is not a finite number"),
        ([1.0, 2.0], [math.inf, 2.0], False, "row 0 of 2"),
        ([0, 100], [0, math.nan], True, "row 1 of 2"),
        ([0, 100], [0, 50], True, "0 or 100, not 50"),
        ([0, 1], [0, 1], True, "0 or 100, not 1"),
        ([[1.0, 2.0]], [[1.0, 2.0]], False, "both are required for every row"),
    ],
)
def test_scores_that_cannot_be_compared(
    base: Sequence[float], tuned: Sequence[float], is_binary: bool, problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        compare(base, tuned, binary=is_binary)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for increased in range(13):
        for decreased in range(13):
            expected = stats.binomtest(increased, increased + decreased, 0.5).pvalue if increased + decreased else 1.0
            assert mcnemar(increased, decreased) == pytest.approx(expected)
            assert mcnemar(increased, decreased) == mcnemar(decreased, increased)
    assert mcnemar(0, 5) == pytest.approx(0.0625)
    assert mcnemar(6, 0) == pytest.approx(0.03125)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(8)
    for tasks in (1, 2, 3, 7, 20):
        p_values = (rng.random(tasks) ** 3).tolist()
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_required_sample_size() -> None:
    significant = binary(increased=30, decreased=5, both_right=40, both_wrong=25).required_sample_size
    assert significant is None
    undecided = binary(increased=12, decreased=8, both_right=60, both_wrong=20)
    # Connor 1987: ((1.95996 * sqrt(.20) + .84162 * sqrt(.20 - .04**2)) / .04)**2
    assert undecided.required_sample_size == 979
    half = binary(increased=24, decreased=16, both_right=40, both_wrong=20)
    assert half.required_sample_size is not None and half.required_sample_size < 979


def test_power_with_the_required_sample_size() -> None:
    rows = binary(increased=12, decreased=8, both_right=60, both_wrong=20).required_sample_size
    assert rows is not None
    drawn = np.random.default_rng(0).multinomial(rows, [0.12, 0.08, 0.80], size=400)
    power = np.mean([mcnemar(int(increased), int(decreased)) < 0.05 for increased, decreased, _ in drawn])
    assert 0.74 <= power <= 0.86


def outcomes(n: int, rose: float, fell: float) -> tuple[Floats, NDArray[np.int64]]:
    """The probability of every (increased, decreased) of n rows, and the list of them."""
    counts = np.array([(increased, decreased) for increased in range(n + 1) for decreased in range(n + 1 - increased)])
    cells = np.column_stack([counts, n - counts.sum(axis=1)])
    return stats.multinomial.pmf(cells, n, [rose, fell, 1 - rose - fell]), counts


def binary_coverage(n: int, rose: float, fell: float) -> float:
    weights, counts = outcomes(n, rose, fell)
    intervals = np.array([bonett_price_interval(increased, decreased, n) for increased, decreased in counts.tolist()])
    truth = 100 * (rose - fell)
    return float(weights[(intervals[:, 0] <= truth) & (truth <= intervals[:, 1])].sum())


def mcnemar_level(changed: int) -> float:
    """The rate of false positives of McNemar's test if `changed` rows changed at random."""
    alarms = (increased for increased in range(changed + 1) if mcnemar(increased, changed - increased) <= 0.05)
    return sum((math.comb(changed, increased) / 2**changed for increased in alarms), start=0.0)


@pytest.mark.parametrize("n", [30, 50, 100])
@pytest.mark.parametrize(("rose", "fell"), [(0.2, 0.1), (0.3, 0.1), (0.3, 0.02), (0.5, 0.05), (0.25, 0.25)])
def test_binary_interval_covers_95_percent(n: int, rose: float, fell: float) -> None:
    """Exact coverage where at least 15 % of the rows change; see the next test for fewer."""
    assert 0.935 <= binary_coverage(n, rose, fell) <= 0.965


def test_binary_interval_covers_95_percent_or_more_where_few_rows_change() -> None:
    """With so few outcomes no interval covers exactly 95 %: this one is conservative (up to 100 %)."""
    for rose in (0.0, 0.01, 0.03, 0.05, 0.1):
        for fell in (0.0, 0.01, 0.03, 0.05, 0.1):
            assert binary_coverage(40, rose, fell) >= 0.935


def test_mcnemar_has_its_level_for_any_number_of_changed_rows() -> None:
    levels = [mcnemar_level(changed) for changed in range(31)]
    assert max(levels) <= 0.05
    assert levels[:6] == [0] * 6
    assert levels[30] > 0.03


def mostly_unchanged(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.choice(np.array([0.0, 0, 0, 0, -10, 25, 50]), shape)


def rouge(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return 100 * (rng.beta(2, 3, shape) - rng.beta(2, 4, shape))


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.normal(1, 3, shape)


@pytest.mark.parametrize(
    ("draw", "truth", "n"),
    [
        (normal, 1.0, 30),
        (rouge, 100 * (2 / 5 - 2 / 6), 30),
        (rouge, 100 * (2 / 5 - 2 / 6), 60),
        (mostly_unchanged, 65 / 7, 60),
    ],
)
def test_bootstrap_interval_covers_95_percent(
    draw: Callable[[np.random.Generator, tuple[int, int]], Floats], truth: float, n: int
) -> None:
    """The coverage over 800 data sets of n rows, all resampled with the same indices."""
    low, high = bootstrap_interval(draw(np.random.default_rng(n), (800, n)), resamples=1999)
    assert 0.935 <= np.mean((low <= truth) & (truth <= high)) <= 0.965


@pytest.mark.parametrize("draw", [normal, rouge, mostly_unchanged])
def test_sign_flip_test_holds_its_level(
    draw: Callable[[np.random.Generator, tuple[int, int]], Floats],
) -> None:
    rng = np.random.default_rng(3)
    no_difference = draw(rng, (1000, 30)) * rng.choice([-1, 1], (1000, 30))
    assert abs(np.mean(sign_flip_test(no_difference, resamples=399) <= 0.05) - 0.05) <= 0.015


def test_sign_flip_test_detects_a_difference() -> None:
    different = np.random.default_rng(4).normal(1, 1, (200, 30))
    assert np.mean(sign_flip_test(different, resamples=399) <= 0.05) > 0.95


# --- rows that share a document ---


def clustered(rng: np.random.Generator, documents: int, effect: float = 0.0) -> tuple[list[float], list[int]]:
    """The differences of two models on documents of one to nine rows, correlated within a document."""
    sizes = rng.integers(1, 10, documents)
    of_document = rng.normal(effect, 10, documents)
    clusters = np.repeat(np.arange(documents), sizes)
    return (of_document[clusters] + rng.normal(0, 3, clusters.size)).tolist(), clusters.tolist()


def test_clusters_of_one_row_have_no_effect() -> None:
    rng = np.random.default_rng(1)
    tuned = rng.normal(2, 5, 30).tolist()
    assert compare([0.0] * 30, tuned, binary=False, clusters=range(30)) == compare([0.0] * 30, tuned, binary=False)


def test_duplicated_rows_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    tuned = rng.normal(2, 5, 30)
    once = compare([0.0] * 30, tuned.tolist(), binary=False)
    twice = compare(
        [0.0] * 60, np.repeat(tuned, 2).tolist(), binary=False, clusters=np.repeat(np.arange(30), 2).tolist()
    )
    assert (twice.n, twice.ci95, twice.p_value) == (60, pytest.approx(once.ci95), pytest.approx(once.p_value))
    assert compare([0.0] * 60, np.repeat(tuned, 2).tolist(), binary=False).p_value < once.p_value


def test_the_cluster_standard_error_is_that_of_statsmodels() -> None:
    """The cluster-robust standard error CR0 of a mean. `compare` resamples one value per document."""
    import statsmodels.api as sm

    from pipelines.scoring.statistics import _cluster_sums

    difference, clusters = clustered(np.random.default_rng(5), 40)
    fit = sm.OLS(difference, np.ones(len(difference))).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(clusters), "use_correction": False}
    )
    sums, sizes = _cluster_sums(np.array(difference), clusters)
    mean = sums.sum() / sizes.sum()
    error = math.sqrt(((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    assert (mean, error) == pytest.approx((fit.params[0], fit.bse[0]), rel=1e-9)


def test_cluster_intervals_cover_and_row_intervals_do_not() -> None:
    rng = np.random.default_rng(6)
    covered, naive, alarms = [], [], []
    for _ in range(100):
        tuned, clusters = clustered(rng, 40)
        base = [0.0] * len(tuned)
        clustered_result = compare(base, tuned, binary=False, clusters=clusters)
        low, high = bootstrap_interval(np.array(tuned), resamples=499)
        covered.append(clustered_result.ci95[0] <= 0 <= clustered_result.ci95[1])
        naive.append(float(low) <= 0 <= float(high))
        alarms.append(clustered_result.p_value < 0.05)
    assert np.mean(covered) >= 0.88
    assert np.mean(naive) < 0.85
    assert np.mean(alarms) <= 0.12


def test_binary_scores_by_document_and_their_required_sample_size() -> None:
    base, tuned = [0, 0, 100, 0] * 10, [100, 100, 0, 0] * 10
    documents = [row // 4 for row in range(40)]
    clustered_result = compare(base, tuned, binary=True, clusters=documents)
    assert (clustered_result.delta, clustered_result.ci95) == (25.0, (25.0, 25.0))  # every document changes equally
    rng = np.random.default_rng(7)
    values, clusters = clustered(rng, 12, effect=2)
    needed = compare([0.0] * len(values), values, binary=False, clusters=clusters).required_sample_size
    assert needed is not None and needed > len(values)


def test_more_comparisons_need_more_rows() -> None:
    single, corrected = (
        compare([0.0] * 40, ([3.0, -2.0] * 20), binary=False, num_comparisons=num_comparisons).required_sample_size
        for num_comparisons in (1, 3)
    )
    assert single is not None and corrected is not None and corrected > single


@pytest.mark.parametrize(
    ("p_value", "ci95", "alpha", "expected"),
    [
        (0.01, (1.0, 3.0), 0.05, True),
        (0.01, (-3.0, -1.0), 0.05, True),
        (0.01, (-1.0, 3.0), 0.05, False),
        (0.01, (0.0, 3.0), 0.05, False),
        (0.05, (1.0, 3.0), 0.05, False),
        (0.01, (1.0, 3.0), 0.005, False),
    ],
)
def test_a_difference_is_significant_where_test_and_interval_agree(p_value, ci95, alpha, expected) -> None:
    assert is_significant(p_value, ci95, alpha) == expected
