"""Rows laid end to end give the numbers of rows alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling.attention import SHARED_PREFIX, candidate_attention
from pipelines.modeling.packing import TokenSequences, sequence_losses, supervised_logits, token_losses
from tests.tiny import make_model

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "llama": ("LlamaConfig", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}),
    "mistral window": (
        "MistralConfig",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 4},
    ),
    "gemma": ("GemmaConfig", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2 capped": (
        "Gemma2Config",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    ),
    "phi": ("PhiConfig", {**SMALL, "intermediate_size": 48}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 64,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}


def some_rows(seed=0, lengths=(7, 12, 3, 9)):
    random = np.random.default_rng(seed)
    return TokenSequences([random.integers(3, 60, n) for n in lengths], [n // 2 for n in lengths])


def rows_that_begin_alike(seed=0):
    """A prompt with five answers, one of them twice, the prompt itself as the end of a row, and another that shares half."""
    random = np.random.default_rng(seed)
    prompt, half = random.integers(3, 60, 14), random.integers(3, 60, 6)
    answers = [random.integers(3, 60, n) for n in (1, 3, 6, 2)]
    rows = [
        *(np.concatenate([prompt, answer]) for answer in (*answers, answers[1])),
        prompt,
        np.concatenate([prompt[:7], half]),
    ]
    return TokenSequences(rows, [14, 14, 15, 9, 14, 6, 7])


def losses_one_by_one(model, rows):
    """Hugging Face, a row at a time, every logit computed."""
    found = []
    for ids, start in zip(rows.input_ids, rows.supervised_from, strict=True):
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        logits = model(input_ids=tokens).logits[0, start - 1 : -1]
        found.append(F.cross_entropy(logits, tokens[0, start:], reduction="none"))
    return torch.cat(found)


@pytest.mark.parametrize("rows", [some_rows(), rows_that_begin_alike()], ids=["strangers", "alike"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_losses_and_gradients_equal_rows_alone(architecture, rows):
    name, settings = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config, same = (getattr(transformers, name)(**settings) for _ in range(2))
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    packed = AutoModelForCausalLM.from_config(
        same, attn_implementation=candidate_attention(type(reference), same)
    ).eval()
    packed.load_state_dict(reference.state_dict())
    expected, found = losses_one_by_one(reference, rows), token_losses(packed, rows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.sum().backward()
    found.sum().backward()
    for (key, a), b in zip(reference.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_no_row_sees_another(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED_PREFIX).eval()
    rows = some_rows()
    alone = token_losses(model, rows[1:2])
    beside = token_losses(model, rows).split(rows.supervised_lengths)[1]
    torch.testing.assert_close(beside, alone, atol=1e-6, rtol=1e-6)


def count_tokens(model, seen):
    return model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[1])
    )


def test_what_rows_begin_with_is_read_once(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED_PREFIX).train()
    rows, seen = rows_that_begin_alike(), []
    count_tokens(model, seen)
    token_losses(model, rows)
    supervised_logits(model, rows, share_prefixes=False)
    assert seen == [14 + 1 + 3 + 3 + 6 + 2 + 6, rows.tokens]  # three tokens are too few to share


def test_under_dropout_each_row_draws_its_own(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED_PREFIX)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"))
    rows, seen = rows_that_begin_alike(), []
    count_tokens(model, seen)
    token_losses(model.train(), rows)
    token_losses(model.eval(), rows)
    assert seen[0] == rows.tokens > seen[1]


def test_row_losses_are_means_whatever_the_pack(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED_PREFIX).eval()
    rows = some_rows()
    small, large = (
        list(sequence_losses(model, rows, batch_tokens=8)),
        list(sequence_losses(model, rows, batch_tokens=4096)),
    )
    assert small == pytest.approx(large, abs=1e-6)
    assert small[0] == pytest.approx(float(losses_one_by_one(model, rows[0:1]).mean()), abs=1e-6)


def test_counts():
    rows = some_rows()
    assert (rows.tokens, rows.supervised_tokens, len(rows)) == (31, 4 + 6 + 2 + 5, 4)
