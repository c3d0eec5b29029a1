"""An interrupted training resumes to bitwise identical weights; a corrupt checkpoint is reported, never ignored."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.errors import MachineError, RunError
from pipelines.training.train import train
from pipelines.training.trainer import FineTuneTrainer
from tests.jobs import LORA

pytestmark = pytest.mark.ludwig

SETTINGS = {
    "epochs": 2,
    "steps_per_checkpoint": 2,
    "optimizer": {"type": "adamw"},
    "learning_rate": 0.001,
    "learning_rate_scheduler": {"decay": "linear"},
    "forgetting": "replay+distill+si+ewc",
}
ADAPTERS = {"lora": {**LORA, "dropout": 0.1}, "full": None}


def weights(run):
    (file,) = run.path("model").glob("*model.safetensors")
    return load_file(file)


def history(run):
    return json.loads(run.path("model", "training.json").read_text())


def checkpoints(run):
    return run.path("training", "model", "training_checkpoints")


def no_progress(done, total, loss):
    pass


@pytest.fixture
def jobs(make_job, tmp_path, monkeypatch):
    """jobs(kind, name, **settings) → (job, run, base folder)"""
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))

    def make(kind="lora", name="run", **settings):
        return make_job(ADAPTERS[kind], name=name, **{**SETTINGS, **settings})

    return make


@pytest.fixture
def uninterrupted(jobs):
    """uninterrupted(kind, **settings) → the run of a training that is not interrupted"""

    def make(kind="lora", **settings):
        job, run, base = jobs(kind, "uninterrupted", **settings)
        train(job, run, base, no_progress)
        return run

    return make


def interrupt_after(step, job, run, base):
    def stop(done, total, loss):
        if done == step and loss is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, run, base, stop)


def assert_same(run, expected):
    assert weights(run).keys() == weights(expected).keys()
    assert all(torch.equal(tensor, weights(expected)[name]) for name, tensor in weights(run).items())
    for key in ("train_loss", "validation_loss", "forgetting", "best_step", "steps", "stopped_early"):
        assert history(run).get(key) == history(expected).get(key), key


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_training_interrupted_after_a_step_resumes_bitwise(jobs, uninterrupted, kind, step):
    expected = uninterrupted(kind)
    job, run, base = jobs(kind)
    interrupt_after(step, job, run, base)
    train(job, run, base, no_progress)
    assert_same(run, expected)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_training_with_states_of_bitsandbytes_resumes_bitwise(jobs, uninterrupted, kind):
    settings = {"optimizer": {"type": "paged_adamw_8bit"}, "forgetting": "none"}
    expected = uninterrupted(kind, **settings)
    job, run, base = jobs(kind, **settings)
    interrupt_after(3, job, run, base)
    train(job, run, base, no_progress)
    assert_same(run, expected)
    if kind == "lora":  # Ludwig would train the embedding as well, which no adapter holds
        assert all("lora_" in name for name in weights(run))


def test_ctrl_c_stops_after_the_step_and_loses_no_step(jobs, uninterrupted, capsys):
    expected = uninterrupted()
    job, run, base = jobs()
    for interrupted_step, signal_number in ((1, signal.SIGINT), (3, signal.SIGTERM)):
        steps = []

        def interrupt(done, total, loss, steps=steps, step=interrupted_step, signal_number=signal_number):
            steps.append(done)
            if done == step and loss is not None:
                os.kill(os.getpid(), signal_number)

        with pytest.raises(KeyboardInterrupt):
            train(job, run, base, interrupt)
        assert steps[-1] == interrupted_step
        assert "press Ctrl-C again to stop now" in capsys.readouterr().err
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[:2] == [3, 4]
    assert_same(run, expected)


def flip_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


CORRUPTIONS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip_bit,
    "other content": lambda path: path.write_bytes(os.urandom(5000)),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_checkpoint_is_reported_and_the_previous_one_used(jobs, uninterrupted, corruption):
    expected = uninterrupted()
    job, run, base = jobs()
    interrupt_after(5, job, run, base)
    CORRUPTIONS[corruption](checkpoints(run) / "latest.ckpt")
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[0] == 3  # the epoch's end was saved before step 4
    assert_same(run, expected)
    notes = history(run).get("notes", [])
    assert [("latest.ckpt is corrupt" in note, "resumed from step 3" in note) for note in notes] == [(True, True)] * (
        corruption != "missing"
    )


def test_training_does_not_restart_if_all_checkpoints_are_corrupt(jobs):
    job, run, base = jobs()
    interrupt_after(5, job, run, base)
    for name in ("latest.ckpt", "previous.ckpt"):
        flip_bit(checkpoints(run) / name)
    before = sorted(path.name for path in checkpoints(run).iterdir())
    with pytest.raises(
        RunError,
        match=r"latest.ckpt is corrupt \(checksum mismatch.*previous.ckpt is corrupt.*remove .*training to train",
    ):
        train(job, run, base, no_progress)
    assert sorted(path.name for path in checkpoints(run).iterdir()) == before


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4, 5])
def test_training_resumes_after_a_full_disk(jobs, uninterrupted, monkeypatch, failing_call):
    expected = uninterrupted()
    job, run, base = jobs()
    save_file, calls = safetensors.torch.save_file, []

    def save_on_full_disk(tensors, path, metadata):
        calls.append(path)
        if len(calls) == failing_call:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", save_on_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        train(job, run, base, no_progress)
    assert caught.value.errno == errno.ENOSPC
    assert not list(checkpoints(run).glob("*.partial"))
    train(job, run, base, no_progress)
    assert_same(run, expected)


def test_an_early_stop_is_kept_if_interrupted_before_the_end(jobs, uninterrupted, monkeypatch):
    settings = {"epochs": 6, "early_stop": 1, "learning_rate": 0.5}
    expected = uninterrupted(**settings)
    assert history(expected)["stopped_early"]
    job, run, base = jobs(**settings)
    loop = FineTuneTrainer._train_loop

    def interrupted(self, *arguments):
        should_stop, broken = loop(self, *arguments)
        if should_stop:
            raise KeyboardInterrupt
        return should_stop, broken

    monkeypatch.setattr(FineTuneTrainer, "_train_loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(job, run, base, no_progress)
    monkeypatch.undo()
    train(job, run, base, no_progress)
    assert_same(run, expected)


def make_loss_nan(monkeypatch, *steps):
    backward = FineTuneTrainer._backward_micro_batch

    def backward_with_nan(self, *arguments, **keywords):
        loss = backward(self, *arguments, **keywords)
        return loss * float("nan") if self._step in steps else loss

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", backward_with_nan)


def test_a_nan_loss_fails_the_training_and_names_its_rows(jobs, monkeypatch):
    job, run, base = jobs()
    make_loss_nan(monkeypatch, 4)
    with pytest.raises(RunError, match=r"step 4: the loss is not finite \(rows rows.jsonl:\d+, rows"):
        train(job, run, base, no_progress)
    assert (checkpoints(run) / "latest.ckpt").exists() and not run.path("model").exists()


def test_nonfinite_steps_are_skipped_up_to_the_limit(jobs, monkeypatch):
    job, run, base = jobs(forgetting="none")
    job = replace(job, pipeline=job.pipeline.model_copy(update={"max_nonfinite_steps": 2}))
    make_loss_nan(monkeypatch, 2, 4)
    train(job, run, base, no_progress)
    assert history(run)["skipped_steps"] == [2, 4]
    assert [entry["step"] for entry in history(run)["train_loss"]] == [1, 3, 5, 6]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
    second_run = type(run)(run.folder.with_name("second"))
    shutil.copytree(run.path("data"), second_run.path("data"))
    make_loss_nan(monkeypatch, 1, 2, 3)
    with pytest.raises(RunError, match="max_nonfinite_steps: 5"):
        train(job, second_run, base, no_progress)


def test_too_little_disk_space_is_an_error_before_the_first_step(jobs, monkeypatch):
    job, run, base = jobs()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    steps = []
    with pytest.raises(
        MachineError, match=r"training needs about 0\.0 GB for its checkpoints, 0\.0 GB are free; free some space"
    ):
        train(job, run, base, lambda done, total, loss: steps.append(done))
    assert not steps
