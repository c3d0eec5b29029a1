"""The size of the micro-batches does not change a step, even if memory runs out during the step."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import MachineError
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.training import micro_batches
from pipelines.training.micro_batches import MicroBatches
from pipelines.training.trainer import FineTuneTrainer
from tests.jobs import LORA, run_training


def sequences(token_lists):
    arrays = [np.array(tokens, dtype=np.int32) for tokens in token_lists]
    return TokenSequences.supervised_from(arrays, [1] * len(arrays))


def test_sequences_with_shared_prefix_go_together():
    step = sequences([[7, 1, 1], [5, 2], [7, 1, 3], [5, 4, 4], [7, 9]])

    def split(batches):
        return [[ids.tolist() for ids in batch.input_ids] for batch in batches.split(step)]

    assert split(MicroBatches(2, {})) == [[[5, 2], [5, 4, 4]], [[7, 1, 1], [7, 1, 3]], [[7, 9]]]
    assert split(MicroBatches(None, {"micro_batch": {"tokens": 8}})) == [
        [[5, 2], [5, 4, 4], [7, 1, 1]],
        [[7, 1, 3], [7, 9]],
    ]


def test_halving_ends_at_one_row():
    history = {}
    batches = MicroBatches(8, history)
    step = sequences([[length] * length for length in (3, 9, 2, 8, 4)])
    assert batches.halve(step) and history == {"micro_batch": {"rows": 2}}
    assert batches.halve(step) and batches.size == {"rows": 1}
    assert not batches.halve(step)
    batches = MicroBatches(None, {"micro_batch": {"tokens": 16}})
    assert batches.halve(step) and batches.size == {"tokens": 8}
    assert not batches.halve(step)


def trained(make_job, name, adapter, **settings):
    """Returns the weights and the history of a training."""
    job, run, base = make_job(adapter, name=name, optimizer={"type": "adamw"}, learning_rate=0.001, **settings)
    run_training(job, run, base)
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    return load_file(run.path("model", file)), json.loads(run.path("model", "training.json").read_text())


AUTO = {"batch_size": "auto", "effective_batch_size": 6}


def losses(history):
    return [entry["loss"] for entry in history["train_loss"]]


@pytest.mark.ludwig
@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_auto_batch_size_gives_the_same_weights(make_job, monkeypatch, adapter):
    weights, history = trained(make_job, "rows", adapter)
    auto_weights, auto_history = trained(make_job, "auto", adapter, **AUTO)
    assert auto_history["micro_batch"]["tokens"] > 100
    monkeypatch.setattr(micro_batches, "free_memory", lambda device: 1)
    small_weights, small_history = trained(make_job, "small", adapter, **AUTO)
    assert small_history["micro_batch"]["tokens"] < 100
    assert losses(small_history) == pytest.approx(losses(history), abs=1e-5)
    for name in weights:
        torch.testing.assert_close(auto_weights[name], weights[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(small_weights[name], weights[name], atol=1e-5, rtol=1e-5)


@pytest.mark.ludwig
def test_out_of_memory_restarts_the_step_with_smaller_micro_batches(make_job, monkeypatch):
    adapter = {**LORA, "dropout": 0.3}
    expected, _ = trained(make_job, "small", adapter, forgetting="distill", batch_size=3, gradient_accumulation_steps=2)
    backward = FineTuneTrainer._backward_micro_batch

    def out_of_memory_beyond_3_rows(self, batch, supervised_tokens, weight=1.0):
        loss = backward(self, batch, supervised_tokens, weight)
        if len(batch) > 3:
            raise torch.OutOfMemoryError("too much")
        return loss

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", out_of_memory_beyond_3_rows)
    weights, history = trained(make_job, "large", adapter, forgetting="distill", batch_size=6)
    assert history["micro_batch"] == {"rows": 3}
    for name in expected:
        assert torch.equal(weights[name], expected[name])


@pytest.mark.ludwig
def test_out_of_memory_at_batch_size_1_is_an_error(make_job, monkeypatch):
    def out_of_memory(self, batch, supervised_tokens, weight=1.0):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", out_of_memory)
    with pytest.raises(MachineError, match=r"out of memory during a training step with 1 row of \d+ tokens"):
        trained(make_job, "never", LORA)
