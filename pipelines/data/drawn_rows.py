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


def describe_drawn(split: str, drawn: DrawnRows, metric: Metric | None) -> str:
    """The rows of a split that are evaluated, without a full stop. `metric`: None for a custom one."""
    text = f"{drawn.rows:,} of {drawn.of:,} {split} rows are evaluated, drawn at random"
    if split != "test" or metric is None or not metric.scores_completions:
        return f"{text} ({split}_rows)"
    return (
        f"{text}: the 95 % interval of a change is about ±{half_width(drawn.rows):.1f} points if one row in four "
        f"changes between right and wrong, with all rows ±{half_width(drawn.of):.1f} ({split}_rows)"
    )
