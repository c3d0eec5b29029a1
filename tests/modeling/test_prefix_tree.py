"""Prefix trees store shared prefixes once and keep every sequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.modeling.prefix_tree import MIN_SHARED_PREFIX, build_prefix_tree


def encode(*texts):
    return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts]


def decode_segments(tree):
    return ["".join(map(chr, segment)) for segment in tree.segments]


def test_a_shared_prefix_is_stored_once():
    tree = build_prefix_tree(encode("system: ask one", "system: tell me", "system: ask two"))
    assert sorted(decode_segments(tree)) == sorted(["system: ", "ask ", "one", "two", "tell me"])
    assert [len(path) for path in tree.paths] == [3, 2, 3]
    of_one = tree.paths[0]
    assert tree.ancestors[of_one[2]] == of_one[:2] and tree.prefix_lengths[of_one[2]] == len("system: ask ")


def test_equal_sequences_and_a_sequence_that_is_a_prefix_of_another():
    tree = build_prefix_tree(encode("abcdefgh", "abcdefgh", "abcdefghij", "abcdefgh"))
    assert sorted(decode_segments(tree)) == ["abcdefgh", "ij"]
    assert tree.paths[0] == tree.paths[1] == tree.paths[3] == tree.paths[2][:1]


def test_short_prefixes_are_not_shared():
    assert sorted(decode_segments(build_prefix_tree(encode("abcX", "abcY")))) == ["abcX", "abcY"]


def test_without_sharing_every_sequence_is_a_segment():
    tree = build_prefix_tree(encode("abcdefgh", "abcdefgh"), share_prefixes=False)
    assert decode_segments(tree) == ["abcdefgh", "abcdefgh"] and tree.paths == [(0,), (1,)]


@given(
    st.lists(st.lists(st.sampled_from([1, 2, 256, 65536]), min_size=1, max_size=12), min_size=1, max_size=12),
    st.booleans(),
)
def test_sequences_can_be_reconstructed(token_lists, share_prefixes):
    sequences = [np.array(tokens, dtype=np.int32) for tokens in token_lists]
    tree = build_prefix_tree(sequences, share_prefixes=share_prefixes)
    for index, sequence in enumerate(sequences):
        indices = tree.token_indices(index)
        assert tree.input_ids[indices].tolist() == sequence.tolist()
        assert tree.position_ids[indices].tolist() == list(range(len(sequence)))
    assert len(tree.input_ids) <= sum(map(len, sequences))


@pytest.mark.parametrize("prefix_len", [MIN_SHARED_PREFIX, 50])
def test_every_shareable_token_is_shared(prefix_len):
    sequences = [np.array([*range(prefix_len), 1000 + index, 7], dtype=np.int32) for index in range(5)]
    assert len(build_prefix_tree(sequences).input_ids) == prefix_len + 5 * 2
