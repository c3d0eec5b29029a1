"""How many of how many held-out rows are evaluated, and how precise a result that gives, in words."""

from __future__ import annotations

import math

from pipelines.scoring.metric import Metric
from pipelines.storage.records import DrawnRows

SHARE_CHANGED = 0.25
"""The share of rows that change between right and wrong in the precision that is foretold."""


def half_width(rows: int) -> float:
    """Half the width of the 95 % interval of a paired change, in points, if SHARE_CHANGED of the rows change between
    right and wrong and about as many become better as become worse: Wald's interval, 1.96 √(share / rows)."""
    return 100 * 1.96 * math.sqrt(SHARE_CHANGED / rows)


def describe_drawn(split: str, drawn: DrawnRows, metric: Metric | None, *, clustered: bool) -> str:
    """The rows of a split that are evaluated, without a full stop.

    The width of an interval falls with the root of the number of rows; for scores that are right or wrong, of rows that
    are independent, it can be foretold. metric: None for a custom one. clustered: whether rows belong to clusters.
    """
    text = f"{drawn.rows:,} of {drawn.of:,} {split} rows are evaluated, drawn at random (report.{split}_rows)"
    if split != "test":
        return text
    text += f": intervals are about {math.sqrt(drawn.of / drawn.rows):.1f} times as wide as with all rows"
    if metric is None or not metric.binary or clustered:
        return text
    return (
        f"{text}, ±{half_width(drawn.rows):.1f} instead of ±{half_width(drawn.of):.1f} points if one row in four "
        "changes between right and wrong"
    )
