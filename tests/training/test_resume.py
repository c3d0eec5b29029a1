"""A training cut off anywhere goes on to the same weights; what is torn is named, and never a silent fresh start."""

import errno
import json
import os
import shutil
import signal

import numpy as np
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


def report(done, total, loss):
    pass


@pytest.fixture
def jobs(make_job, tmp_path, monkeypatch):
    """jobs(kind, name, **settings) → (job, run, base)"""
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))

    def make(kind="lora", name="run", **settings):
        return make_job(ADAPTERS[kind], name=name, **{**SETTINGS, **settings})

    return make


@pytest.fixture
def whole(jobs):
    """whole(kind) → the run that nothing disturbed."""

    def make(kind="lora", **settings):
        job, run, base = jobs(kind, "whole", **settings)
        train(job, run, base, report)
        return run

    return make


def cut_off(job, run, base, step):
    def stop(done, total, loss):
        if done == step and loss is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, run, base, stop)


def same(one, other):
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[key]) for key, tensor in weights(one).items())
    for key in ("train_loss", "validation_loss", "forgetting", "best_step", "steps", "stopped_early"):
        assert history(one)[key] == history(other)[key], key


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_cut_off_at_a_step_it_ends_as_if_nothing_had_been(jobs, whole, kind, step):
    undisturbed = whole(kind)
    job, run, base = jobs(kind)
    cut_off(job, run, base, step)
    train(job, run, base, report)
    same(run, undisturbed)


def test_ctrl_c_ends_behind_the_step_and_loses_none(jobs, whole, capsys):
    undisturbed = whole()
    job, run, base = jobs()
    for moment, number in ((1, signal.SIGINT), (3, signal.SIGTERM)):

        def interrupt(done, total, loss, moment=moment, number=number):
            if done == moment and loss is not None:
                os.kill(os.getpid(), number)

        steps = []
        with pytest.raises(KeyboardInterrupt):
            train(
                job,
                run,
                base,
                lambda done, total, loss, go=interrupt, steps=steps: (steps.append(done), go(done, total, loss)),
            )
        assert steps[-1] == moment
        assert "press Ctrl-C again to stop now" in capsys.readouterr().err
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[:2] == [3, 4]
    same(run, undisturbed)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


TEARS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip,
    "something else": lambda path: path.write_bytes(os.urandom(5000)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_named_and_the_one_before_taken(jobs, whole, tear):
    undisturbed = whole()
    job, run, base = jobs()
    cut_off(job, run, base, 5)
    TEARS[tear](checkpoints(run) / "latest.ckpt")
    steps = []
    train(job, run, base, lambda done, total, loss: steps.append(done))
    assert steps[0] == 3  # the epoch's end was saved before step 4
    same(run, undisturbed)
    notes = history(run).get("notes", [])
    assert [("latest.ckpt is corrupt" in note, "resumed from step 3" in note) for note in notes] == [(True, True)] * (
        tear != "gone"
    )


def test_without_any_readable_checkpoint_nothing_is_trained_anew(jobs):
    job, run, base = jobs()
    cut_off(job, run, base, 5)
    for name in ("latest.ckpt", "previous.ckpt"):
        flip(checkpoints(run) / name)
    before = sorted(path.name for path in checkpoints(run).iterdir())
    with pytest.raises(
        RunError,
        match=r"latest.ckpt is corrupt \(checksum mismatch.*previous.ckpt is corrupt.*remove .*training to train",
    ):
        train(job, run, base, report)
    assert sorted(path.name for path in checkpoints(run).iterdir()) == before


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_full_disk_loses_nothing(jobs, whole, monkeypatch, failing):
    undisturbed = whole()
    job, run, base = jobs()
    save_file, count = safetensors.torch.save_file, [0]

    def full(tensors, path, metadata):
        count[0] += 1
        if count[0] == failing:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(job, run, base, report)
    assert caught.value.errno == errno.ENOSPC
    assert not list(checkpoints(run).glob("*.partial"))
    train(job, run, base, report)
    same(run, undisturbed)


def test_cut_off_behind_the_decision_to_stop_it_stops(jobs, whole, monkeypatch):
    settings = {"epochs": 6, "early_stop": 1, "learning_rate": 0.5}
    undisturbed = whole(**settings)
    assert history(undisturbed)["stopped_early"]
    job, run, base = jobs(**settings)
    loop = FineTuneTrainer._train_loop

    def killed(self, *arguments):
        decided, broken = loop(self, *arguments)
        if decided:
            raise KeyboardInterrupt
        return decided, broken

    monkeypatch.setattr(FineTuneTrainer, "_train_loop", killed)
    with pytest.raises(KeyboardInterrupt):
        train(job, run, base, report)
    monkeypatch.undo()
    train(job, run, base, report)
    same(run, undisturbed)


def not_a_number_at(monkeypatch, *steps):
    backward = FineTuneTrainer._backward_micro_batch
    seen = []

    def spoilt(self, *arguments, **keywords):
        loss = backward(self, *arguments, **keywords)
        seen.append(self._step)
        return loss * float("nan") if self._step in steps else loss

    monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", spoilt)
    return seen


def test_a_loss_that_is_no_number_ends_the_training_and_names_its_rows(jobs, monkeypatch):
    job, run, base = jobs()
    not_a_number_at(monkeypatch, 4)
    with pytest.raises(RunError, match=r"step 4: the loss is not finite \(rows rows.jsonl:\d+, rows"):
        train(job, run, base, report)
    assert (checkpoints(run) / "latest.ckpt").exists() and not run.path("model").exists()


def test_such_steps_may_be_passed_over(jobs, monkeypatch):
    job, run, base = jobs(forgetting="none")
    job = type(job)(job.path, job.pipeline.model_copy(update={"max_nonfinite_steps": 2}), job.ludwig, job.document)
    not_a_number_at(monkeypatch, 2, 4)
    train(job, run, base, report)
    assert history(run)["skipped"] == [2, 4]
    assert [entry["step"] for entry in history(run)["train_loss"]] == [1, 3, 5, 6]
    assert all(np.isfinite(tensor).all() for tensor in weights(run).values())
    again = type(run)(run.folder.with_name("again"))
    shutil.copytree(run.path("data"), again.path("data"))
    not_a_number_at(monkeypatch, 1, 2, 3)
    with pytest.raises(RunError, match="max_nonfinite_steps: 5"):
        train(job, again, base, report)


def test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step(jobs, monkeypatch):
    job, run, base = jobs()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    steps = []
    with pytest.raises(
        MachineError, match=r"training needs about 0\.0 GB for its checkpoints, 0\.0 GB are free; free some space"
    ):
        train(job, run, base, lambda done, total, loss: steps.append(done))
    assert not steps
