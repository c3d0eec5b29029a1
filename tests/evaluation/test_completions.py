"""Completions: the same whatever way they are computed."""

import pytest
import torch

from pipelines.evaluation import pool_decoding, slot_decoding
from pipelines.evaluation.completions import InferenceSettings, LoadedModel, complete
from pipelines.modeling import merged_adapter
from tests.forgetting.tiny_lora import lora
from tests.tiny import make_model

PROMPTS = [[9, 5, 6], [11, 12], [7, 5, 8, 9, 12], [9, 5, 6, 7], [6]]
LIMITS = [20, 5, 33, 20, 20]
REFERENCES = [[5, 6], [], [9], [7, 7, 7], [8, 9]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return LoadedModel.from_folder(make_model(tmp_path_factory.mktemp("model") / "base"))


@pytest.mark.parametrize("decoding", ["slots", "pool"])
def test_decoding_gives_the_completions_of_generate(decoding, loaded):
    counts = {"generate": [], decoding: []}
    completions = {}
    for requested, progress in counts.items():
        loaded.inference = InferenceSettings(requested)
        completions[requested] = complete(loaded, PROMPTS, {"do_sample": False}, LIMITS, progress.append, REFERENCES)
        assert sum(progress) == len(PROMPTS)
        assert loaded.inference_note == ("decoding in slots" if requested == "slots" else None)
    for one, other in zip(completions["generate"], completions[decoding], strict=True):
        assert (one.text, one.num_generated_tokens, one.finish_reason) == (
            other.text,
            other.num_generated_tokens,
            other.finish_reason,
        )
        assert other.reference_nll == pytest.approx(one.reference_nll, abs=1e-6)


def test_a_cpu_neither_merges_nor_decodes_in_fixed_slots(loaded, monkeypatch):
    def fails(*args):
        raise AssertionError

    loaded.inference = InferenceSettings()
    monkeypatch.setattr(slot_decoding, "decode_greedy", fails)
    monkeypatch.setattr(merged_adapter, "probe_logits", fails)
    assert len(complete(loaded, PROMPTS, {}, LIMITS)) == len(PROMPTS)


def test_without_memory_for_the_slots_there_are_fewer_of_them(loaded, monkeypatch):
    loaded.inference = InferenceSettings("generate")
    expected = complete(loaded, PROMPTS, {"do_sample": False}, LIMITS, references=REFERENCES)
    next_tokens, slots, counts = slot_decoding.SlotDecoder.next_tokens, [], []

    def out_of_memory(self, count):
        slots.append(self.slots)
        if len(slots) == 2:  # some completions have ended
            raise torch.OutOfMemoryError("CUDA out of memory")
        return next_tokens(self, count)

    monkeypatch.setattr(slot_decoding.SlotDecoder, "next_tokens", out_of_memory)
    loaded.inference = InferenceSettings("slots")
    completions = complete(loaded, PROMPTS, {"do_sample": False}, LIMITS, counts.append, REFERENCES)
    assert [completion.text for completion in completions] == [completion.text for completion in expected]
    assert slots[:2] == [8, 8] and max(slots[2:]) <= 4 and sum(counts) == len(PROMPTS)


def test_without_memory_for_the_pool_it_is_smaller(loaded, monkeypatch):
    loaded.inference = InferenceSettings("generate")
    expected = complete(loaded, PROMPTS, {"do_sample": False}, LIMITS, references=REFERENCES)
    next_logits, used, counts = pool_decoding.SlotPool.next_logits, [], []

    def out_of_memory(self):
        used.append(len(self.sequences))
        if len(used) == 6:  # some completions have ended
            raise MemoryError
        return next_logits(self)

    monkeypatch.setattr(pool_decoding, "MAX_SLOTS", 4)
    monkeypatch.setattr(pool_decoding, "MIN_SPARED_TOKENS", 2)
    monkeypatch.setattr(pool_decoding.SlotPool, "next_logits", out_of_memory)
    loaded.inference = InferenceSettings()
    completions = complete(loaded, PROMPTS, {"do_sample": False}, LIMITS, counts.append, REFERENCES)
    assert [completion.text for completion in completions] == [completion.text for completion in expected]
    assert max(used[:6]) == 4 and max(used[6:]) <= 2 and sum(counts) == len(PROMPTS)


def test_without_memory_for_merging_the_adapter_stays_unmerged(tmp_path, monkeypatch):
    model, failures = lora(tmp_path / "m", moved=True), []
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def out_of_memory(model):
        failures.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(merged_adapter, "_try_merge", out_of_memory)
    with merged_adapter.adapter_merged(model, True) as is_merged:
        assert not is_merged and failures
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
