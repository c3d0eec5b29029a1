"""Every row can be read back from its segments, and what rows begin with stands there once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.modeling.prefix_tree import LEAST_SHARED, lay_out


def rows_of(*texts):
    return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts]


def letters(layout):
    return ["".join(map(chr, segment)) for segment in layout.segments]


def test_a_shared_beginning_stands_once():
    layout = lay_out(rows_of("system: ask one", "system: tell me", "system: ask two"))
    assert sorted(letters(layout)) == sorted(["system: ", "ask ", "one", "two", "tell me"])
    assert [len(path) for path in layout.paths] == [3, 2, 3]


def test_a_row_that_another_begins_with_and_the_same_row_twice():
    layout = lay_out(rows_of("abcdefgh", "abcdefgh", "abcdefghij", "abcdefgh"))
    assert sorted(letters(layout)) == ["abcdefgh", "ij"]
    assert layout.paths[0] == layout.paths[1] == layout.paths[3] == layout.paths[2][:1]


def test_too_little_in_common_is_read_again():
    assert sorted(letters(lay_out(rows_of("abcX", "abcY")))) == ["abcX", "abcY"]


def test_without_sharing_the_rows_stand_in_order():
    layout = lay_out(rows_of("abcdefgh", "abcdefgh"), share=False)
    assert letters(layout) == ["abcdefgh", "abcdefgh"] and layout.paths == [(0,), (1,)]


@given(
    st.lists(st.lists(st.sampled_from([1, 2, 256, 65536]), min_size=1, max_size=12), min_size=1, max_size=12),
    st.booleans(),
)
def test_every_row_can_be_read_back(tokens, share):
    rows = [np.array(row, dtype=np.int32) for row in tokens]
    layout = lay_out(rows, share=share)
    for number, row in enumerate(rows):
        places = layout.places(number)
        assert layout.tokens[places].tolist() == row.tolist()
        assert layout.positions[places].tolist() == list(range(len(row)))
    assert len(layout.tokens) <= sum(map(len, rows))


@pytest.mark.parametrize("common", [LEAST_SHARED, 50])
def test_as_many_tokens_as_can_be_saved(common):
    rows = [np.array([*range(common), 1000 + number, 7], dtype=np.int32) for number in range(5)]
    assert len(lay_out(rows).tokens) == common + 5 * 2
