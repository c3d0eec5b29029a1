"""Token sequences: counts, spans, and how they are split into batches."""

import subprocess
import sys

import numpy as np
import pytest

from pipelines.modeling.token_sequences import (
    TokenSequences,
    batch_by_tokens,
    micro_batches,
    split_at_spans,
    split_prompt,
    supervised_indices,
)

IDS = [np.arange(10, dtype=np.int32), np.arange(4, dtype=np.int32), np.arange(10, dtype=np.int32)]
BATCH = TokenSequences(IDS, [[(1, 3), (6, 8)], [(2, 4)], [(1, 3), (7, 9)]])


def test_counts():
    assert (len(BATCH), BATCH.num_tokens, BATCH.supervised_lengths, BATCH.num_supervised_tokens) == (
        3,
        24,
        [4, 2, 4],
        10,
    )
    assert BATCH.prompt_lengths == [6, 2, 7]
    assert BATCH.supervised_indices(0).tolist() == [1, 2, 6, 7]


def test_supervised_from():
    sequences = TokenSequences.supervised_from(IDS, [3, 4, 9])
    assert sequences.supervised_spans == [[(3, 10)], [], [(9, 10)]]
    assert (sequences.supervised_lengths, sequences.prompt_lengths) == ([7, 0, 1], [3, 4, 9])
    assert sequences.supervised_indices(1).dtype == np.int64 and len(sequences.supervised_indices(1)) == 0


@pytest.mark.parametrize("spans", [[(0, 2)], [(1, 5)], [(2, 2)], [(3, 2)], [(2, 3), (1, 2)], [(1, 3), (2, 4)]], ids=str)
def test_invalid_spans(spans):
    """The first token, tokens past the end, empty and reversed spans, spans out of order or overlapping."""
    with pytest.raises(ValueError, match="of a sequence of 4 tokens: expected disjoint ranges in order, within 1 to 4"):
        supervised_indices(spans, 4)


def test_select_slice_and_concatenate_keep_spans_with_their_tokens():
    selected = BATCH.select([2, 0])
    assert selected.supervised_spans == [[(1, 3), (7, 9)], [(1, 3), (6, 8)]] and selected.input_ids[0] is IDS[2]
    joined = TokenSequences.concatenate(BATCH[1:2], selected)
    assert joined.supervised_lengths == [2, 4, 4] and joined.input_ids[0] is IDS[1]


def test_equal_tokens_with_other_spans_have_another_key():
    assert BATCH.key(0) != BATCH.key(2)
    assert BATCH.key(0) == BATCH[0:1].key(0)


def test_batches_hold_every_sequence_once_in_order():
    assert list(batch_by_tokens(BATCH, 14)) == [[0, 1], [2]]
    assert list(batch_by_tokens(BATCH, 1)) == [[0], [1], [2]]
    assert [batch.num_supervised_tokens for batch in micro_batches(BATCH, 2)] == [6, 4]


def test_the_prompt_precedes_the_last_span():
    assert split_prompt([*range(10)], [(1, 3), (6, 8)]) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert split_prompt([1, 2], []) == ([1, 2], [])
    assert list(split_at_spans([*range(10)], [(1, 3), (3, 4), (6, 8)])) == [
        ([0], False),
        ([1, 2], True),
        ([3], True),
        ([4, 5], False),
        ([6, 7], True),
        ([8, 9], False),
    ]


def test_no_torch_is_imported():
    code = "import pipelines.modeling.token_sequences, pipelines.modeling.prefix_tree, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokens_of_a_shared_prefix_count_once_per_batch():
    rows = [np.asarray([1] * 10 + [row]) for row in range(6)] + [np.asarray([2] * 10)]
    sequences = TokenSequences.supervised_from(rows, list(map(len, rows)))
    assert list(batch_by_tokens(sequences, 13)) == [[0], [1], [2], [3], [4], [5], [6]]
    assert list(batch_by_tokens(sequences, 13, count_shared_once=True)) == [[0, 1, 2], [3, 4, 5], [6]]
