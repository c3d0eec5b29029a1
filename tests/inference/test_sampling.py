"""Sampling: the distribution of temperature, top_p and top_k as transformers has it."""

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipelines.inference import sampling
from pipelines.inference.requests import GenerationRequest
from pipelines.inference.sampling import Sampler, token_logprob
from pipelines.inference.sampling_defaults import SamplingDefaults


def sampler(**settings):
    return Sampler(GenerationRequest("base", [1], 10, **settings))


def frequencies(one, logits, count=20_000):
    drawn = torch.tensor([one.choose(logits, [])[0] for _ in range(count)])
    return drawn.bincount(minlength=len(logits)) / count


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"temperature": 1.3, "top_p": 0.7}]
    + [
        {"temperature": 1.0, "top_p": 0.8, "top_k": 6},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "top_p": 0.0},
    ],
)
@pytest.mark.parametrize("candidates", [4, 1024])
def test_tokens_have_the_frequencies_of_transformers(settings, candidates, monkeypatch):
    monkeypatch.setattr(sampling, "TOP_P_CANDIDATES", candidates)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    warpers = [TemperatureLogitsWarper(settings["temperature"])]
    warpers += [TopKLogitsWarper(settings["top_k"])] if "top_k" in settings else []
    warpers += [TopPLogitsWarper(settings["top_p"])] if "top_p" in settings else []
    expected = LogitsProcessorList(warpers)(torch.tensor([[1]]), logits[None].clone())[0].softmax(-1)
    found = frequencies(sampler(seed=1, **settings), logits)
    assert (found - expected).abs().max() < 0.012
    assert not found[expected == 0].any()


def test_temperature_0_is_the_most_likely_token():
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert {sampler().choose(logits, [])[0] for _ in range(5)} == {1}
    assert {sampler(temperature=5.0, top_k=1).choose(logits, [])[0] for _ in range(5)} == {1}
    assert not sampler().needs_logits and sampler(temperature=1.0).needs_logits


def test_extreme_logits():
    logits = torch.tensor([1e4, -1e4, float("-inf"), 1e4])
    assert set(sampler(temperature=0.01, seed=0).choose(logits, [])[0] for _ in range(50)) <= {0, 3}
    logits = torch.full((50_000,), float("-inf"))
    logits[77] = 0
    assert sampler(temperature=1.0, top_p=0.5).choose(logits, [])[0] == 77


def test_repetition_penalty():
    logits = torch.tensor([2.0, -1.0, 1.5, 0.5])
    ids = torch.tensor([[0, 1, 1]])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, logits[None].clone())[0]
    assert int(expected.argmax()) == 2
    assert sampler(repetition_penalty=1.5).choose(logits, ids[0].tolist())[0] == 2
    assert torch.equal(sampler(repetition_penalty=1.5)._penalized(logits, ids[0].tolist()), expected)


def test_log_probabilities():
    logits = torch.tensor([1.0, 2.0, 0.5])
    one = token_logprob(logits, 2, 2)
    assert one.token == 2 and one.logprob == pytest.approx(float(logits.log_softmax(-1)[2]))
    assert [token for token, _ in one.top] == [1, 0]
    assert token_logprob(logits, 0, 0).top == ()
    assert len(token_logprob(logits, 0, 10).top) == 3


def test_the_run_decides_what_a_request_leaves_out():
    neutral = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    greedy = SamplingDefaults.from_generation({"do_sample": False, "temperature": 0.3, "top_p": 0.1, "num_beams": 1})
    assert greedy.settings() == neutral and greedy.ignored == ()
    sampled = SamplingDefaults.from_generation({"do_sample": True, "temperature": 0.3, "top_p": 0.9, "num_beams": 3})
    assert sampled.settings() == neutral | {"temperature": 0.3, "top_p": 0.9, "top_k": 50}
    assert sampled.settings(temperature=1.0) == neutral | {"temperature": 1.0}
    assert sampled.ignored == ("num_beams",)
    assert SamplingDefaults.from_generation({"repetition_penalty": 1.1, "min_p": 0.1}).ignored == ("min_p",)
