"""Random splits."""

from collections import Counter

from pipelines.data.splits import random_splits


def test_random_splits():
    splits = random_splits(100, 0.1, 0.2)
    assert Counter(splits) == {"train": 70, "test": 20, "validation": 10}
    assert splits == random_splits(100, 0.1, 0.2)
    assert Counter(random_splits(3, 0.1, 0.1)) == {"train": 1, "test": 1, "validation": 1}
