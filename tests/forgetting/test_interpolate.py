"""How far to go between base and tuned."""

import pytest

from pipelines.config.forgetting import Interpolate
from pipelines.forgetting.interpolate import SCALES, bisect_scale


@pytest.mark.parametrize("best", SCALES)
def test_the_largest_scale_within_the_budget_is_found_in_a_few_passes(best):
    scale, measured = bisect_scale(
        Interpolate(max_loss_increase=0.02), lambda at: 4 + 0.02 * (at / (best or 0.001)) ** 2
    )
    assert scale == best
    assert len(measured) <= 6
    assert measured[0] == (0.0, 4.0)


def test_a_model_that_lost_nothing_is_left_alone_after_one_pass():
    assert bisect_scale(Interpolate(), lambda at: 4 - at) == (1.0, [(0.0, 4.0), (1.0, 3.0)])


def test_a_scale_of_ones_own_is_taken_without_a_pass():
    assert bisect_scale(Interpolate(scale=0.3), lambda at: 1 / 0) == (0.3, [])
