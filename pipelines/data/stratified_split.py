"""Random splits: of single rows, by label, or of whole clusters of rows.

The draw depends on the rows only, not on the job's seed: runs that differ in their seed are compared on the same test
rows. Raise PREPARED_FORMAT in stages/digests.py when rows are split in another way; the digest holds no version of
alfine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

MAX_STRATA_FRACTION = 0.2
"""Fraction of distinct values from which a column holds texts, not labels. Its rows are then split as any others."""


def random_splits(
    count: int,
    validation: float,
    test: float,
    *,
    strata: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> list[str]:
    """Draws a split for each of `count` rows; `validation` and `test` are fractions of them.

    strata: the label of each row. Every label then has its proportion of each split, as exactly as whole rows allow,
        and a label with a single row is in the training split.
    clusters: the cluster of each row, such as its document. All rows of a cluster are then in one split, which makes
        the fractions approximate; `strata` has no effect.
    """
    order = list(range(count))
    random.Random(count).shuffle(order)
    wanted = {"test": max(1, round(count * test)) if test else 0}
    wanted["validation"] = max(1, round(count * validation)) if validation and count > 2 else 0
    if clusters is not None:
        return _split_clusters(order, wanted, clusters)
    if strata is not None and len(set(strata)) <= max(2, count * MAX_STRATA_FRACTION):
        return _split_strata(order, wanted, strata)
    splits = ["train"] * count
    for position, index in enumerate(order[: sum(wanted.values())]):
        splits[index] = "test" if position < wanted["test"] else "validation"
    return splits


def _split_strata(order: Sequence[int], wanted: dict[str, int], strata: Sequence[Hashable]) -> list[str]:
    splits = ["train"] * len(order)
    rows: dict[Hashable, list[int]] = {}
    for index in order:
        rows.setdefault(strata[index], []).append(index)
    available = {stratum: len(indices) for stratum, indices in rows.items()}
    for split, total in wanted.items():
        for stratum, quota in _quotas({stratum: len(rows) for stratum, rows in rows.items()}, available, total).items():
            for index in rows[stratum][available[stratum] - quota : available[stratum]]:
                splits[index] = split
            available[stratum] -= quota
    return splits


def _quotas(sizes: dict[Hashable, int], available: dict[Hashable, int], total: int) -> dict[Hashable, int]:
    """How many rows of each stratum belong to a split of `total` rows: proportional, by the largest remainders.

    One row of each stratum stays in the training split.
    """
    count = sum(sizes.values())
    exact = {stratum: size * total / count for stratum, size in sizes.items()}
    quotas = {stratum: min(int(share), max(available[stratum] - 1, 0)) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: quotas[stratum] - exact[stratum])
    missing = total - sum(quotas.values())
    while missing > 0:
        open_strata = [stratum for stratum in by_remainder if quotas[stratum] < available[stratum] - 1]
        if not open_strata:
            break
        for stratum in open_strata[:missing]:
            quotas[stratum] += 1
        missing = total - sum(quotas.values())
    return quotas


def _split_clusters(order: Sequence[int], wanted: dict[str, int], clusters: Sequence[Hashable]) -> list[str]:
    sizes = Counter(clusters)
    split_of: dict[Hashable, str] = {}
    remaining = dict(wanted)
    for cluster in dict.fromkeys(clusters[index] for index in order):
        # The first cluster that is drawn is taken even if it is larger than the split, which would stay empty.
        split = next(
            (name for name, rows in remaining.items() if rows > 0 and (sizes[cluster] <= rows or rows == wanted[name])),
            "train",
        )
        split_of[cluster] = split
        if split != "train":
            remaining[split] -= sizes[cluster]
    if "train" not in split_of.values() and len(split_of) > 1:
        split_of[next(reversed(split_of))] = "train"
    return [split_of[cluster] for cluster in clusters]
