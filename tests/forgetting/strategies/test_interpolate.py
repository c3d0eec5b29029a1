"""The search for the scale between base and tuned."""

import pytest

from pipelines.forgetting.strategies.interpolate import SCALES, Interpolate, InterpolateSettings, bisect_scale


@pytest.mark.parametrize("best", SCALES)
def test_bisection_finds_the_largest_allowed_scale_in_six_measurements(best):
    scale, measurements = bisect_scale(0.02, lambda scale: 4 + 0.02 * (scale / (best or 0.001)) ** 2)
    assert scale == best
    assert len(measurements) <= 6
    assert measurements[0] == (0.0, 4.0)


def test_a_loss_that_did_not_increase_keeps_the_tuned_weights():
    assert bisect_scale(0.02, lambda scale: 4 - scale) == (1.0, [(0.0, 4.0), (1.0, 3.0)])


def test_a_fixed_scale_needs_no_measurement():
    assert Interpolate(InterpolateSettings(scale=0.3), context=None)._choose_scale(None) == (0.3, [])
