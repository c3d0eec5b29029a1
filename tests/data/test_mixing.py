"""Mixing weights and the order of an epoch."""

from collections import Counter

import pytest

from pipelines.data.mixing import mixing_weights, sample_epoch


@pytest.mark.parametrize(
    ("mix", "expected"), [("proportional", (0.9, 0.1)), ("equal", (0.5, 0.5)), ("temperature", (0.75, 0.25))]
)
def test_mixing_weights(mix, expected):
    weights = mixing_weights({"a": 900, "b": 100}, {"a": 1, "b": 1}, mix, 2.0)
    assert (weights["a"], weights["b"]) == pytest.approx(expected)
    assert mixing_weights({"a": 1, "b": 1}, {"a": 3, "b": 1}, mix, 2.0)["a"] == pytest.approx(0.75)


def test_proportional_epochs_hold_every_row_once():
    tasks = ["a"] * 30 + ["b"] * 7
    weights = mixing_weights({"a": 30, "b": 7}, {"a": 1, "b": 1}, "proportional", 2.0)
    first, second = (sample_epoch(tasks, weights, 1, epoch, True) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(37))
    assert first != second
    assert sample_epoch(tasks, weights, 1, 0, True) == first != sample_epoch(tasks, weights, 2, 0, True)
    assert sample_epoch(tasks, weights, 1, 0, False) == list(range(37))


def test_equal_epochs_repeat_the_small_task_evenly():
    tasks = ["a"] * 30 + ["b"] * 6
    order = sample_epoch(tasks, mixing_weights({"a": 30, "b": 6}, {"a": 1, "b": 1}, "equal", 2.0), 1, 0, True)
    counts = Counter(order)
    assert len(order) == 36
    assert {counts[row] for row in range(30, 36)} == {3}
    assert {counts[row] for row in range(30) if counts[row]} == {1}
