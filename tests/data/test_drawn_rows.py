"""What is said of a sample of the test rows, and the interval that it foretells, against the one that is computed."""

import numpy as np
import pytest

from pipelines.data.drawn_rows import SHARE_CHANGED, describe_drawn, half_width
from pipelines.scoring.metric import metric_from_key
from pipelines.scoring.statistics import compare
from pipelines.storage.records import DrawnRows

DRAWN = DrawnRows(rows=1000, of=40_000)


@pytest.mark.parametrize("rows", [200, 1000, 10_000])
def test_the_foretold_width_is_that_of_the_interval(rows):
    changed = round(rows * SHARE_CHANGED)
    base = np.repeat([0, 100, 0], [changed // 2, changed // 2, rows - changed // 2 * 2])
    tuned = np.repeat([100, 0, 0], [changed // 2, changed // 2, rows - changed // 2 * 2])
    low, high = compare(base, tuned, binary=True).ci95
    assert half_width(rows) == pytest.approx((high - low) / 2, rel=0.02)


def test_what_is_said():
    binary, points = metric_from_key("exact_match"), metric_from_key("rouge")
    text = (
        "1,000 of 40,000 test rows are evaluated, drawn at random (report.test_rows): intervals are about 6.3 times as "
    )
    text += "wide as with all rows"
    precise = f"{text}, ±3.1 instead of ±0.5 points if one row in four changes between right and wrong"
    assert describe_drawn("test", DRAWN, binary, clustered=False) == precise
    for metric, clustered in ((binary, True), (points, False), (None, False)):
        assert describe_drawn("test", DRAWN, metric, clustered=clustered) == text
    assert describe_drawn("validation", DRAWN, binary, clustered=False).endswith("(report.validation_rows)")
