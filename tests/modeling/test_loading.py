"""Packing is enabled only if packed logits equal those of single sequences."""

import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling.attention import MASKED, SHARED, UNPACKED, candidate_attention
from pipelines.modeling.loading import detect_linear_lm_head, load_causal_lm, select_attention_backend
from pipelines.modeling.packing import linear_lm_head, token_losses
from tests.modeling.test_packing import (
    ARCHITECTURES,
    SMALL,
    hugging_face_losses,
    sequences_with_shared_prefix,
    unrelated_sequences,
)
from tests.tiny import make_model

GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
SPECIAL = {
    "llama": ("LlamaConfig", GROUPED, SHARED["loop"]),
    "nemotron, whose layers hand nothing on": ("NemotronConfig", {**GROUPED, "head_dim": 8}, MASKED),
    "lfm2, short convolutions": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"]}, UNPACKED),
    "minimax, a recurrent state": (
        "MiniMaxConfig",
        {**GROUPED, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
        UNPACKED,
    ),
    "granite, sinks": ("GraniteSWAConfig", GROUPED, UNPACKED),
    "gemma2, capped": ("Gemma2Config", {**GROUPED, "head_dim": 8}, UNPACKED),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_selected_attention_gives_the_losses_of_hugging_face(kind):
    name, settings, expected = SPECIAL[kind]
    torch.manual_seed(0)
    config, same = (getattr(transformers, name)(**settings) for _ in range(2))
    reference = AutoModelForCausalLM.from_config(same, attn_implementation="eager").eval()
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=candidate_attention(type(reference), config)
    ).eval()
    model.load_state_dict(reference.state_dict())
    select_attention_backend(model)
    assert model.config._attn_implementation == expected
    for sequences in (unrelated_sequences(), sequences_with_shared_prefix()):
        torch.testing.assert_close(
            token_losses(model, sequences), hugging_face_losses(reference, sequences), atol=1e-5, rtol=1e-5
        )


def test_loading_compares_logits_and_warns_if_packing_is_disabled(tmp_path, monkeypatch, caplog):
    folder = make_model(tmp_path / "m")
    assert load_causal_lm(folder, allow_half_precision=True).config._attn_implementation == SHARED["loop"]
    monkeypatch.setattr("pipelines.modeling.loading.outputs_match", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        model = load_causal_lm(folder, allow_half_precision=True)
    assert (
        model.config._attn_implementation == UNPACKED
        and "packing disabled: packed and unpacked logits differ" in caplog.text
    )


def test_a_forward_without_extra_arguments_disables_packing(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "m")
    kind = type(load_causal_lm(folder, allow_half_precision=True))
    whole = kind.forward

    def forward(self, input_ids=None, position_ids=None, use_cache=None, logits_to_keep=0):
        return whole(self, input_ids, position_ids=position_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(kind, "forward", forward)
    assert load_causal_lm(folder, allow_half_precision=True).config._attn_implementation == UNPACKED


HEADS = {
    "llama": ("LlamaConfig", GROUPED, True),
    "gpt2": (*ARCHITECTURES["gpt2"], True),
    "phi, with a bias": (*ARCHITECTURES["phi"], True),
    "granite, scaled": ("GraniteConfig", {**GROUPED, "logits_scaling": 8.0}, False),
    "cohere, scaled": ("CohereConfig", GROUPED, False),
    "gemma2, capped": ("Gemma2Config", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 0.5}, False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_linear_cross_entropy_equals_the_loss_from_logits(kind, monkeypatch):
    name, settings, plain = HEADS[kind]
    monkeypatch.setattr("pipelines.modeling.linear_cross_entropy.MIN_CHUNK_TOKENS", 3)
    monkeypatch.setattr("pipelines.modeling.linear_cross_entropy.MAX_LOGITS_PER_CHUNK", 1)
    torch.manual_seed(0)
    attention = UNPACKED if "capped" in kind else SHARED["loop"]
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**settings), attn_implementation=attention
    ).eval()
    model.get_output_embeddings().requires_grad_(False)
    detect_linear_lm_head(model)
    assert (linear_lm_head(model) is not None) == plain
    sequences, results = sequences_with_shared_prefix(), {}
    for model.has_linear_lm_head in (True, False):
        losses = token_losses(model, sequences)
        (losses * torch.linspace(1, 2, len(losses))).sum().backward()
        results[model.has_linear_lm_head] = [
            losses.detach(),
            *(one.grad for one in model.parameters() if one.grad is not None),
        ]
        model.zero_grad()
    if plain:
        torch.testing.assert_close(results[True], results[False], atol=1e-5, rtol=1e-5)


def test_a_trained_or_adapted_head_computes_logits(tmp_path):
    model = load_causal_lm(make_model(tmp_path / "m"), allow_half_precision=True)
    assert linear_lm_head(model.requires_grad_(False)) is not None
    with torch.no_grad():
        assert linear_lm_head(model.requires_grad_(True)) is not None
    assert linear_lm_head(model) is None
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        assert linear_lm_head(adapted) is None
