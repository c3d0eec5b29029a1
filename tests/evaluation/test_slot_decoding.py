"""Decoding in slots: the tokens of greedy `generate`, also when slots are filled again and limits differ."""

import numpy as np
import pytest
import torch

from pipelines.evaluation import slot_decoding
from pipelines.evaluation.generation import supports_packed_prefill
from pipelines.evaluation.slot_decoding import (
    SlotCacheLayer,
    decode_greedy,
    decoding_matches,
)
from pipelines.modeling.packing import sequence_mean_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.evaluation.test_generation import STOPS, generate_alone, models, prompts
from tests.modeling.test_packing import ARCHITECTURES

SUPPORTED = ["llama", "qwen2", "gemma", "phi", "gpt2"]
LENGTHS = (7, 12, 1, 3, 9, 30, 2, 41, 5, 18)
LIMITS = (40, 3, 16, 17, 33, 1, 48, 20, 40, 5)


def rows(lengths=LENGTHS):
    return TokenSequences.supervised_from([np.asarray(ids) for ids in prompts(lengths)], list(lengths))


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_tokens_are_those_of_generate(architecture, slots, monkeypatch):
    monkeypatch.setattr(slot_decoding, "MAX_SLOTS", slots)
    plain, ours = models(architecture)
    expected = [
        generate_alone(plain, prompt, limit, do_sample=False)
        for prompt, limit in zip(prompts(LENGTHS), LIMITS, strict=True)
    ]
    ended = []
    generated, nlls = decode_greedy(ours, rows(), LIMITS, STOPS, use_graph=False, progress=ended.append)
    assert generated == expected
    assert nlls == [None] * len(LENGTHS)
    assert sum(ended) == len(LENGTHS)


def test_references_are_scored():
    _, ours = models("llama")
    sequences = TokenSequences.supervised_from(rows().input_ids, [max(1, length - 2) for length in LENGTHS])
    _, nlls = decode_greedy(ours, sequences, LIMITS, STOPS, use_graph=False)
    scored = [index for index, length in enumerate(sequences.supervised_lengths) if length]
    expected = list(sequence_mean_losses(ours, sequences.select(scored)))
    assert [nlls[index] for index in scored] == pytest.approx(expected, abs=1e-6)
    assert nlls[LENGTHS.index(1)] is None


def test_the_trial_accepts_models_with_packed_prefill():
    for name in ARCHITECTURES:
        _, ours = models(name)
        if supports_packed_prefill(ours):
            assert decoding_matches(ours, use_graph=False), name


@pytest.mark.parametrize("fault", ["positions", "column", "mask"])
def test_the_trial_rejects_wrong_logits(fault, monkeypatch):
    _, ours = models("llama")
    if fault == "positions":
        forward = type(ours).forward

        def wrong(self, *args, position_ids, **rest):
            return forward(self, *args, position_ids=position_ids * (position_ids.shape[1] > 1), **rest)

        monkeypatch.setattr(type(ours), "forward", wrong)
    elif fault == "column":
        update = SlotCacheLayer.update

        def wrong(self, keys, values, *args, **kwargs):
            self.index = self.index * 0
            return update(self, keys, values)

        monkeypatch.setattr(SlotCacheLayer, "update", wrong)
    else:
        monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda self, mask, value: self)
    assert not decoding_matches(ours, use_graph=False)


def test_models_whose_forward_pass_fails_are_rejected(monkeypatch):
    _, ours = models("llama")

    def fails(self, *args, position_ids, **rest):
        raise TypeError

    monkeypatch.setattr(type(ours), "forward", fails)
    assert not decoding_matches(ours, use_graph=False)


def test_ended_sequences_do_not_run_beyond_the_context():
    _, ours = models("gpt2")
    lengths = (120, 100)  # of 128 positions; gpt2 raises an IndexError beyond
    plain, _ = models("gpt2")
    generated, _ = decode_greedy(ours, rows(lengths), [8, 28], [], use_graph=False)
    assert [len(tokens) for tokens in generated] == [8, 28]


def test_slots_are_limited_by_memory(monkeypatch):
    _, ours = models("llama")
    per_token = slot_decoding.cache_bytes_per_token(ours)
    config = ours.config
    assert per_token == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    monkeypatch.setattr(slot_decoding, "cache_bytes", lambda model: 100 * 13 * per_token)
    assert slot_decoding._num_slots(ours, 100, 1000) == 8
    assert slot_decoding._num_slots(ours, 100, 5) == 8
    assert slot_decoding._num_slots(ours, 100_000, 5) == 1
    monkeypatch.setattr(slot_decoding, "cache_bytes", lambda model: 1 << 40)
    assert slot_decoding._num_slots(ours, 100, 1000) == slot_decoding.MAX_SLOTS


def test_groups_of_similar_length():
    groups = list(slot_decoding._groups_of_similar_length([64, 65, 97, 10, 300, 129]))
    assert groups == [[4], [5], [2], [1], [0, 3]]
