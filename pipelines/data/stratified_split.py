"""Random splits and samples: of single rows, by label, or of whole clusters of rows.

The draws depend on the rows and on `report.seed`, not on the job's seed: runs that differ in their seed are compared on
the same test rows. Raise PREPARED_FORMAT in stages/digests.py when rows are drawn in another way; the digest holds no
version of alfine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import zip_longest

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
    if strata is not None and are_labels(strata):
        return _split_strata(order, wanted, strata)
    splits = ["train"] * count
    for position, index in enumerate(order[: sum(wanted.values())]):
        splits[index] = "test" if position < wanted["test"] else "validation"
    return splits


def are_labels(values: Collection[Hashable]) -> bool:
    """Whether the values of a column are labels: few of them are distinct. Otherwise they are texts."""
    return len(set(values)) <= max(2, len(values) * MAX_STRATA_FRACTION)


def sample_rows(
    rows: Sequence[int],
    size: int,
    seed: int,
    *,
    strata: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> set[int]:
    """Draws `size` of `rows`, the indices of rows; all of them if there are no more.

    strata: the label of every row of the files. Each label then has its share of the sample, as exactly as whole rows
        allow.
    clusters: the cluster of every row. Whole clusters are then drawn, in random order, each that still fits; so the
        sample may be smaller, and is larger only if even the smallest cluster is. `strata` has no effect.
    """
    if len(rows) <= size:
        return set(rows)
    order = list(rows)
    random.Random(seed).shuffle(order)
    if clusters is not None:
        return _sample_clusters(order, size, clusters, seed)
    if strata is None or not are_labels([strata[row] for row in rows]):
        return set(order[:size])
    by_stratum: dict[Hashable, list[int]] = {}
    for row in order:
        by_stratum.setdefault(strata[row], []).append(row)
    sizes = {stratum: len(members) for stratum, members in by_stratum.items()}
    quotas = _quotas(sizes, sizes, size, kept=0)
    return {row for stratum, members in by_stratum.items() for row in members[: quotas[stratum]]}


def _sample_clusters(order: Sequence[int], size: int, clusters: Sequence[Hashable], seed: int) -> set[int]:
    sizes = Counter(clusters[row] for row in order)
    names = list(sizes)  # each as likely as any other, however many rows it has
    random.Random(seed).shuffle(names)
    remaining, drawn = size, set[Hashable]()
    for name in names:
        if sizes[name] <= remaining:
            drawn.add(name)
            remaining -= sizes[name]
    drawn = drawn or {min(names, key=sizes.__getitem__)}
    return {row for row in order if clusters[row] in drawn}


def rank_examples(
    rows: Sequence[int], limit: int, seed: int, strata: Sequence[Hashable] | None = None
) -> dict[int, int]:
    """The ranks from 0 of at most `limit` of `rows`, the indices of rows, in the order in which they become examples
    in a prompt.

    The order is random. With `strata`, the label of every row of the files, the labels take turns, the most frequent
    first, so that few examples show as many labels as possible.
    """
    rng = random.Random(seed)
    if strata is None or not are_labels([strata[row] for row in rows]):
        ranked = rng.sample(rows, min(limit, len(rows)))
        return {row: rank for rank, row in enumerate(ranked)}
    by_stratum: dict[Hashable, list[int]] = {}
    for row in rows:
        by_stratum.setdefault(strata[row], []).append(row)
    members = sorted(by_stratum.values(), key=len, reverse=True)
    turns = zip_longest(*(rng.sample(rows, min(limit, len(rows))) for rows in members))
    ranked = [row for turn in turns for row in turn if row is not None][:limit]
    return {row: rank for rank, row in enumerate(ranked)}


def _split_strata(order: Sequence[int], wanted: dict[str, int], strata: Sequence[Hashable]) -> list[str]:
    splits = ["train"] * len(order)
    rows: dict[Hashable, list[int]] = {}
    for index in order:
        rows.setdefault(strata[index], []).append(index)
    available = {stratum: len(indices) for stratum, indices in rows.items()}
    for split, total in wanted.items():
        sizes = {stratum: len(rows) for stratum, rows in rows.items()}
        for stratum, quota in _quotas(sizes, available, total, kept=1).items():
            for index in rows[stratum][available[stratum] - quota : available[stratum]]:
                splits[index] = split
            available[stratum] -= quota
    return splits


def _quotas(
    sizes: Mapping[Hashable, int], available: Mapping[Hashable, int], total: int, kept: int
) -> dict[Hashable, int]:
    """How many rows of each stratum belong to a split of `total` rows: proportional, by the largest remainders.

    `kept` rows of each stratum stay where they are: one of them in the training split.
    """
    count = sum(sizes.values())
    exact = {stratum: size * total / count for stratum, size in sizes.items()}
    quotas = {stratum: min(int(share), max(available[stratum] - kept, 0)) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: quotas[stratum] - exact[stratum])
    missing = total - sum(quotas.values())
    while missing > 0:
        open_strata = [stratum for stratum in by_remainder if quotas[stratum] < available[stratum] - kept]
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
