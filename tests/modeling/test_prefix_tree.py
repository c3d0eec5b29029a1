"""Every row can be read back from its segments, and what rows begin with stands there once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.modeling.prefix_tree import MIN_SHARED_PREFIX, build_prefix_tree


def rows_of(*texts):
    return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts]


def letters(tree):
    return ["".join(map(chr, segment)) for segment in tree.segments]


def test_a_shared_beginning_stands_once():
    tree = build_prefix_tree(rows_of("system: ask one", "system: tell me", "system: ask two"))
    assert sorted(letters(tree)) == sorted(["system: ", "ask ", "one", "two", "tell me"])
    assert [len(path) for path in tree.paths] == [3, 2, 3]


def test_a_row_that_another_begins_with_and_the_same_row_twice():
    tree = build_prefix_tree(rows_of("abcdefgh", "abcdefgh", "abcdefghij", "abcdefgh"))
    assert sorted(letters(tree)) == ["abcdefgh", "ij"]
    assert tree.paths[0] == tree.paths[1] == tree.paths[3] == tree.paths[2][:1]


def test_too_little_in_common_is_read_again():
    assert sorted(letters(build_prefix_tree(rows_of("abcX", "abcY")))) == ["abcX", "abcY"]


def test_without_sharing_the_rows_stand_in_order():
    tree = build_prefix_tree(rows_of("abcdefgh", "abcdefgh"), share_prefixes=False)
    assert letters(tree) == ["abcdefgh", "abcdefgh"] and tree.paths == [(0,), (1,)]


@given(
    st.lists(st.lists(st.sampled_from([1, 2, 256, 65536]), min_size=1, max_size=12), min_size=1, max_size=12),
    st.booleans(),
)
def test_every_row_can_be_read_back(tokens, share):
    rows = [np.array(row, dtype=np.int32) for row in tokens]
    tree = build_prefix_tree(rows, share_prefixes=share)
    for number, row in enumerate(rows):
        places = tree.token_indices(number)
        assert tree.input_ids[places].tolist() == row.tolist()
        assert tree.position_ids[places].tolist() == list(range(len(row)))
    assert len(tree.input_ids) <= sum(map(len, rows))


@pytest.mark.parametrize("common", [MIN_SHARED_PREFIX, 50])
def test_as_many_tokens_as_can_be_saved(common):
    rows = [np.array([*range(common), 1000 + number, 7], dtype=np.int32) for number in range(5)]
    assert len(build_prefix_tree(rows).input_ids) == common + 5 * 2
