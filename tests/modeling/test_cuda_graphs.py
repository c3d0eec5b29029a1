"""Micro-batches padded for CUDA graphs give the losses and gradients of unpadded ones."""

import contextlib

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling import cuda_graphs
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.attention import SHARED
from pipelines.modeling.cuda_graphs import MicroBatchGraphs
from pipelines.modeling.loading import detect_linear_lm_head
from pipelines.modeling.packing import token_losses
from tests.modeling.test_packing import ARCHITECTURES, BATCHES, unrelated_sequences
from tests.tiny import make_model


def lora_model(folder, architecture=None, **settings):
    if architecture is None:
        model = AutoModelForCausalLM.from_pretrained(make_model(folder), attn_implementation=SHARED["loop"])
    else:
        name, values = ARCHITECTURES[architecture]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            getattr(transformers, name)(**values), attn_implementation=SHARED["loop"]
        )
    model.requires_grad_(False)
    detect_linear_lm_head(model)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config).train()
    torch.manual_seed(1)
    for parameter in trainable_parameters(model):
        parameter.data = torch.randn(parameter.shape) * 0.1
    return model


def graphs_of(model):
    return MicroBatchGraphs(model, trainable_parameters(model), contextlib.nullcontext, capture=False)


def gradients(model):
    return [parameter.grad.clone() for parameter in trainable_parameters(model)]


@pytest.mark.parametrize("architecture", [None, "mistral window"])
@pytest.mark.parametrize("name", BATCHES)
def test_padded_gradients_add_up_to_those_of_unpadded_micro_batches(tmp_path, name, architecture):
    model, batches = lora_model(tmp_path, architecture), [BATCHES[name], unrelated_sequences(3)]
    losses = [(token_losses(model, batch) * 0.25).sum() for batch in batches]
    sum(losses).backward()
    expected = gradients(model)
    graphs = graphs_of(model)
    for _ in range(2):  # with the gradients of the step before reset
        model.zero_grad()
        actual = [graphs.backward(batch, 0.25) for batch in batches]
        torch.testing.assert_close(actual, [loss.detach() for loss in losses])
        torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)
    assert graphs.is_enabled and model.get_base_model().config._attn_implementation == SHARED["loop"]


def test_gradients_of_other_passes_are_kept(tmp_path):
    model, sequences = lora_model(tmp_path), unrelated_sequences()
    token_losses(model, sequences).sum().backward()
    expected = [2 * gradient for gradient in gradients(model)]
    assert graphs_of(model).backward(sequences, 1.0) is not None
    torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)


def test_large_micro_batches_dropout_and_hooks_are_left_to_the_trainer(tmp_path, monkeypatch):
    sequences = unrelated_sequences()
    assert graphs_of(lora_model(tmp_path, lora_dropout=0.1)).backward(sequences, 1.0) is None
    hooked = lora_model(tmp_path)
    trainable_parameters(hooked)[0].register_post_accumulate_grad_hook(lambda _: None)
    assert graphs_of(hooked).backward(sequences, 1.0) is None
    monkeypatch.setattr(cuda_graphs, "TOKEN_SIZES", (16,))
    model = lora_model(tmp_path)
    assert graphs_of(model).backward(sequences, 1.0) is None
    assert all(parameter.grad is None for parameter in trainable_parameters(model))


def test_another_result_disables_the_graphs(tmp_path, monkeypatch):
    model, graphs = lora_model(tmp_path), None
    graphs = graphs_of(model)
    monkeypatch.setattr(cuda_graphs, "visible_tokens", lambda *arguments: torch.ones(1, 1, 128, 128, dtype=bool))
    assert graphs.backward(unrelated_sequences(), 1.0) is None
    assert not graphs.is_enabled and all(parameter.grad is None for parameter in trainable_parameters(model))
