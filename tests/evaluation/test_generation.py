"""Packed prefill and batched generation: tokens and losses as for each prompt by itself in plain transformers."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from pipelines.evaluation.generation import COMPACT_EVERY, generate_from_cache, packed_prefill, supports_packed_prefill
from pipelines.modeling.attention import candidate_attention
from pipelines.modeling.packing import sequence_mean_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.modeling.test_packing import ARCHITECTURES

STOPS = [7, 8, 9]
"""Many tokens end a completion, so that completions end at different steps."""


def models(architecture):
    """The same weights with ours and with plain attention; large ones, so that no two tokens are nearly as likely."""
    name, settings = ARCHITECTURES[architecture]
    torch.manual_seed(1)
    config, same = (getattr(transformers, name)(**settings, initializer_range=0.5) for _ in range(2))
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ours = AutoModelForCausalLM.from_config(same, attn_implementation=candidate_attention(type(plain), same)).eval()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def prompts(lengths=(7, 12, 1, 3, 9)):
    rng = np.random.default_rng(3)
    return [[int(token) for token in rng.integers(10, 60, length)] for length in lengths]


def generate_alone(model, prompt, tokens, **settings):
    config = GenerationConfig(max_new_tokens=tokens, eos_token_id=STOPS, pad_token_id=STOPS[0], **settings)
    with torch.inference_mode():
        generated = model.generate(input_ids=torch.tensor([prompt]), generation_config=config)[
            0, len(prompt) :
        ].tolist()
    end = next((index for index, token in enumerate(generated) if token in STOPS), len(generated))
    return generated[: end + 1]


def generate_batched(model, rows, tokens, **settings):
    cache = None
    if supports_packed_prefill(model):
        cache = packed_prefill(
            model, TokenSequences.supervised_from([np.asarray(ids) for ids in rows], [len(ids) for ids in rows])
        )[1]
    return generate_from_cache(model, rows, STOPS, {"max_new_tokens": tokens, **settings}, cache)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokens", [1, COMPACT_EVERY, 2 * COMPACT_EVERY + 3])
def test_batched_completions_equal_those_of_each_prompt_alone(architecture, tokens):
    plain, ours = models(architecture)
    expected = [generate_alone(plain, prompt, tokens, do_sample=False) for prompt in prompts()]
    assert generate_batched(ours, prompts(), tokens, do_sample=False) == expected


def test_which_models_support_packed_prefill():
    found = {name: supports_packed_prefill(models(name)[1]) for name in ARCHITECTURES}
    assert found == {
        "llama": True,
        "qwen2": True,
        "mistral window": False,
        "gemma": True,
        "gemma2 capped": False,
        "phi": True,
        "gpt2": True,
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packed_prefill_scores_the_references(architecture):
    _, ours = models(architecture)
    rng = np.random.default_rng(0)
    rows = TokenSequences.supervised_from([rng.integers(10, 60, n) for n in (9, 14, 5, 30)], [4, 14, 1, 20])
    losses, cache = packed_prefill(ours, rows, batch_tokens=25)
    scored = [0, 2, 3]
    assert losses[1] is None
    assert [losses[n] for n in scored] == pytest.approx(list(sequence_mean_losses(ours, rows.select(scored))), abs=1e-6)
    assert cache.get_seq_length() == 19


@pytest.mark.parametrize("lengths", [(7, 12, 1, 3, 9), (1, 1)])
def test_the_cache_holds_the_keys_and_values_of_each_prompt_by_itself(lengths):
    _, ours = models("llama")
    rows = [np.asarray(prompt) for prompt in prompts(lengths)]
    _, cache = packed_prefill(ours, TokenSequences.supervised_from(rows, list(map(len, rows))), batch_tokens=20)
    width = max(lengths) - 1
    for index, row in enumerate(rows):
        alone = ours(torch.from_numpy(row)[None], use_cache=True).past_key_values
        for layer, expected in zip(cache.layers, alone.layers, strict=True):
            for tensor, single in ((layer.keys, expected.keys), (layer.values, expected.values)):
                padding, cached = tensor[index].split([width - len(row) + 1, len(row) - 1], dim=1)
                assert not padding.any()
                torch.testing.assert_close(cached, single[0, :, :-1])


def test_finished_sequences_are_evicted(monkeypatch):
    _, ours = models("llama")
    sizes = []
    forward = type(ours).forward

    def counted(self, input_ids=None, **rest):
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(ours), "forward", counted)
    lengths = [len(row) for row in generate_batched(ours, prompts([5] * 12), 64, do_sample=False)]
    late = [length for length in lengths if length > 2 * COMPACT_EVERY]
    assert 0 < len(late) < 12 and sizes[1] == 12 and sizes[-1] <= len(late)


def test_settings_that_count_tokens_generate_in_one_call():
    plain, ours = models("llama")
    settings = {"do_sample": False, "min_new_tokens": 20, "num_beams": 2}
    expected = [generate_alone(plain, prompt, 40, **settings) for prompt in prompts()]
    assert generate_batched(ours, prompts(), 40, **settings) == expected


def test_sampling_obeys_the_settings():
    _, ours = models("llama")
    torch.manual_seed(0)
    greedy = generate_batched(ours, prompts([6] * 4), 40, do_sample=False)
    assert generate_batched(ours, prompts([6] * 4), 40, do_sample=True, top_k=1) == greedy
    assert generate_batched(ours, prompts([6] * 4), 40, do_sample=True, temperature=2.0) != greedy
