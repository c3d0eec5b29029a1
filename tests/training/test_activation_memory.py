"""The memory of a pass: what grows with the tokens, and what does not."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.training.activation_memory import PassMemory, measure_pass, optimizer_state_bytes
from pipelines.training.micro_batches import MAX_MICRO_BATCH_TOKENS, tokens_that_fit


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def run(model, num_tokens, dtype):
    def backward():
        row = TokenSequences.supervised_from([np.arange(num_tokens, dtype=np.int32) % 64], [1])
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = token_losses(model, row).sum()
        loss.backward()

    return measure_pass(model, backward)


def test_copies_of_weights_by_autocast_do_not_count_as_activations(model):
    """Full fine-tuning in mixed precision: the copies are 2 bytes a weight of the linear layers, whatever the row."""
    short, long = run(model, 6, torch.bfloat16), run(model, 12, torch.bfloat16)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert short.constant == long.constant == pytest.approx(2 * linear, rel=0.05)
    # Twice the tokens take twice the memory; attention's scores, which grow with the square, are small here.
    assert long.activations / short.activations == pytest.approx(2, rel=0.1)
    assert short.constant > short.activations  # counted per token, the size would be far too small


def test_in_fp32_there_are_no_copies(model):
    short, long = run(model, 6, None), run(model, 12, None)
    assert short.constant == 0 and long.activations / short.activations == pytest.approx(2, rel=0.1)


def test_tokens_that_fit():
    measured = PassMemory(activations=1000, constant=5000)
    assert tokens_that_fit(measured, 10, free=105_000, fraction=0.8) == 800
    assert tokens_that_fit(measured, 10, free=4000, fraction=0.8) == 10
    assert tokens_that_fit(measured, 10, free=10**12, fraction=0.8) == MAX_MICRO_BATCH_TOKENS


def test_states_that_the_first_step_allocates(model):
    weights, count = list(model.parameters()), sum(weight.numel() for weight in model.parameters())
    assert optimizer_state_bytes(torch.optim.AdamW(weights)) == 8 * count
    assert optimizer_state_bytes(torch.optim.SGD(weights, 0.1)) == 0
    assert optimizer_state_bytes(torch.optim.SGD(weights, 0.1, momentum=0.9)) == 4 * count
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer_state_bytes(optimizer) == 0
