"""What goes through the model at once changes nothing in the step, even where memory runs out in the middle of one."""

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


def rows(*lengths):
    return TokenSequences.from_completion_starts([np.full(n, n) for n in lengths], [1] * len(lengths))


def lengths(parts):
    return [[len(ids) for ids in part.input_ids] for part in parts]


def test_sequences_with_shared_prefix_go_together():
    texts = [[7, 1, 1], [5, 2], [7, 1, 3], [5, 4, 4], [7, 9]]
    some = TokenSequences.from_completion_starts([np.array(text, dtype=np.int32) for text in texts], [1] * 5)

    def parts(batches):
        return [[ids.tolist() for ids in part.input_ids] for part in batches.split(some)]

    assert parts(MicroBatches(2, {})) == [[[5, 2], [5, 4, 4]], [[7, 1, 1], [7, 1, 3]], [[7, 9]]]
    assert parts(MicroBatches(None, {"micro_batch": {"tokens": 8}})) == [
        [[5, 2], [5, 4, 4], [7, 1, 1]],
        [[7, 1, 3], [7, 9]],
    ]


def test_halving_ends_at_one_row():
    history = {}
    batches = MicroBatches(8, history)
    some = rows(3, 9, 2, 8, 4)
    assert batches.halve(some) and history == {"micro_batch": {"rows": 2}}
    assert batches.halve(some) and batches.size == {"rows": 1}
    assert not batches.halve(some)
    batches = MicroBatches(None, {"micro_batch": {"tokens": 16}})
    assert batches.halve(some) and batches.size == {"tokens": 8}
    assert not batches.halve(some)


def trained(make_job, name, adapter, **settings):
    job, run, base = make_job(adapter, name=name, optimizer={"type": "adamw"}, learning_rate=0.001, **settings)
    run_training(job, run, base)
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    return load_file(run.path("model", file)), json.loads(run.path("model", "training.json").read_text())


AUTO = {"batch_size": "auto", "effective_batch_size": 6}


@pytest.mark.ludwig
@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_as_many_as_fit_end_with_the_same_weights(make_job, monkeypatch, adapter):
    expected, before = trained(make_job, "rows", adapter)
    found, history = trained(make_job, "auto", adapter, **AUTO)
    assert history["micro_batch"]["tokens"] > 100
    monkeypatch.setattr(micro_batches, "free_memory", lambda device: 1)
    tight, history = trained(make_job, "tight", adapter, **AUTO)
    assert history["micro_batch"]["tokens"] < 100
    assert [entry["loss"] for entry in history["train_loss"]] == pytest.approx(
        [entry["loss"] for entry in before["train_loss"]], abs=1e-5
    )
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tight[key], expected[key], atol=1e-5, rtol=1e-5)


@pytest.mark.ludwig
def test_where_memory_runs_out_the_step_starts_anew_with_less(make_job, monkeypatch):
    dropping = {**LORA, "dropout": 0.3}
    expected, _ = trained(
        make_job, "small", dropping, forgetting="distill", batch_size=3, gradient_accumulation_steps=2
    )
    backward = FineTuneTrainer._backward_micro_batch

    def too_much(self, part, supervised, weight=1.0):
        found = backward(self, part, supervised, weight)
        if len(part) > 3:
            raise torch.OutOfMemoryError("too much")
        return found

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", too_much)
    found, history = trained(make_job, "large", dropping, forgetting="distill", batch_size=6)
    assert history["micro_batch"] == {"rows": 3}
    for key in expected:
        assert torch.equal(found[key], expected[key])


@pytest.mark.ludwig
def test_a_row_that_does_not_fit_is_said(make_job, monkeypatch):
    def too_much(self, part, supervised, weight=1.0):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", too_much)
    with pytest.raises(MachineError, match=r"out of memory at batch size 1 \(\d+ tokens\); use shorter rows"):
        trained(make_job, "never", LORA)
