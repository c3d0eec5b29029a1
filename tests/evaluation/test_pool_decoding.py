"""Decoding in a pool: the tokens of greedy `generate`, also with shared prefixes and with slots that are filled again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import MachineError
from pipelines.evaluation import pool_decoding
from pipelines.evaluation.pool_decoding import decode_in_pool, find_shared_prefixes
from pipelines.modeling.packing import sequence_mean_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.evaluation.test_generation import STOPS, generate_alone, models, prompts

LENGTHS = (7, 12, 1, 3, 9, 30, 2, 41, 5, 18)
LIMITS = (40, 3, 16, 17, 33, 1, 48, 20, 40, 5)


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "phi", "gpt2"])
def test_tokens_are_those_of_generate(architecture, slots, monkeypatch):
    monkeypatch.setattr(pool_decoding, "MAX_SLOTS", slots)
    monkeypatch.setattr(pool_decoding, "MIN_SPARED_TOKENS", 8)
    plain, ours = models(architecture)
    own = prompts(LENGTHS)
    # The second and third prefix start with the first; the first is also a whole prompt.
    shared = prompts((20, 11, 6))
    starts = [[], shared[0], [*shared[0], *shared[1]], [*shared[0], *shared[2]], [], shared[0]]
    rows = [[*starts[index % len(starts)], *ids] for index, ids in enumerate(own)] + [shared[0]] * 2
    limits = [*LIMITS, 7, 9]
    reported = []
    sequences = TokenSequences.supervised_from([np.asarray(ids) for ids in rows], list(map(len, rows)))
    tokens, nlls = decode_in_pool(ours, sequences, limits, STOPS, reported.append)
    assert sum(reported) == len(rows) and set(nlls) == {None}
    for ids, limit, generated in zip(rows, limits, tokens, strict=True):
        assert generated == generate_alone(plain, ids, limit, do_sample=False)


def test_references_are_scored(monkeypatch):
    monkeypatch.setattr(pool_decoding, "MIN_SPARED_TOKENS", 8)
    _, ours = models("llama")
    shared, *own = prompts((20, 7, 12, 9, 5))
    rows = [np.asarray([*shared, *ids]) for ids in own]
    sequences = TokenSequences.supervised_from(
        rows, [len(ids) - length for ids, length in zip(rows, (2, 0, 4, 1), strict=True)]
    )
    _, nlls = decode_in_pool(ours, sequences, [3] * 4, STOPS)
    scored = [0, 2, 3]
    assert nlls[1] is None
    assert [nlls[index] for index in scored] == pytest.approx(
        list(sequence_mean_losses(ours, sequences.select(scored))), abs=1e-5
    )


def test_a_sequence_that_does_not_fit_is_an_error(monkeypatch):
    def fails(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(pool_decoding.SlotPool, "next_logits", fails)
    _, ours = models("llama")
    rows = TokenSequences.supervised_from([np.asarray(ids) for ids in prompts((7, 3))], [7, 3])
    with pytest.raises(MachineError, match="out of memory during completions"):
        decode_in_pool(ours, rows, [4, 4], STOPS)


def test_keys_of_a_prefix_are_kept_no_longer_than_its_sequences(monkeypatch):
    monkeypatch.setattr(pool_decoding, "MAX_SLOTS", 2)
    monkeypatch.setattr(pool_decoding, "MIN_SPARED_TOKENS", 8)
    found, held = [], []
    in_order, next_logits = pool_decoding._in_order, pool_decoding.SlotPool.next_logits

    def ordered(*args):
        found.extend(in_order(*args))
        return found

    def observed(self):
        held.append(len({id(one.prefix) for one in found if one.prefix and one.prefix.keys}))
        return next_logits(self)

    monkeypatch.setattr(pool_decoding, "_in_order", ordered)
    monkeypatch.setattr(pool_decoding.SlotPool, "next_logits", observed)
    _, ours = models("llama")
    rows = [[start, *([start + 1] * 9), end] for start in (5, 6, 7) for end in (11, 12, 13)]
    decode_in_pool(ours, TokenSequences.supervised_from([np.asarray(ids) for ids in rows], [11] * 9), [4] * 9, STOPS)
    assert len({id(one.prefix) for one in found}) == 3 and max(held) <= 2
    assert not any(one.prefix.keys for one in found)


def test_the_longest_prefix_is_shared_where_it_spares_the_most(monkeypatch):
    monkeypatch.setattr(pool_decoding, "MIN_SPARED_TOKENS", 6)
    system = [1, 2, 3]
    tasks = [[*system, *[task] * 5, row] for task in (7, 8) for row in range(4)]
    assert find_shared_prefixes(tasks) == [(8, [0, 1, 2, 3]), (8, [4, 5, 6, 7])]
    assert find_shared_prefixes([[*system, row] for row in range(4)]) == [(3, [0, 1, 2, 3])]
    assert find_shared_prefixes([[1, 2, 3, 4]] * 3) == [(3, [0, 1, 2])]
    assert find_shared_prefixes([[1, 2, 3, 4], [1, 2, 3, 5]]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(1, 8))
def test_groups_are_disjoint_and_share_their_prefix(rows, minimum):
    before, pool_decoding.MIN_SPARED_TOKENS = pool_decoding.MIN_SPARED_TOKENS, minimum
    try:
        groups = find_shared_prefixes(rows)
    finally:
        pool_decoding.MIN_SPARED_TOKENS = before
    members = [index for _, indices in groups for index in indices]
    assert len(members) == len(set(members))
    for length, indices in groups:
        assert length * (len(indices) - 1) >= minimum
        assert len({tuple(rows[index][:length]) for index in indices}) == 1
        assert all(len(rows[index]) > length for index in indices)


def test_prefixes_within_prefixes_do_not_nest_without_end():
    rows = [[1] * length for length in range(1, 1500)]
    assert find_shared_prefixes(rows) is not None
