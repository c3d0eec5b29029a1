"""Stages are done once; files are whole; a folder belongs to one process."""

import json
import os
import shutil
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.errors import MachineError, RunError
from pipelines.runs import Run, digest, machine_errors, read_jsonl, write_jsonl, write_tensors, write_text


def test_a_stage_is_done_once_and_again_when_its_inputs_change(tmp_path):
    done = []
    for inputs in ("a", "a", "b"):
        run = Run(tmp_path / "r")
        run.stage("prepare", inputs, lambda inputs=inputs: done.append(inputs))
    assert done == ["a", "b"]
    assert Run.open(tmp_path / "r").manifest["stages"]["prepare"]["inputs"] == "b"


def test_a_stage_that_breaks_off_is_not_done(tmp_path):
    run = Run(tmp_path / "r")
    run.stage("train", "a", lambda: None)

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("train", "b", broken)
    assert "train" not in Run(tmp_path / "r").manifest["stages"]


def test_two_processes_of_one_name(tmp_path):
    with (
        Run(tmp_path / "r").locked(),
        pytest.raises(RunError, match="in use by another alfine"),
        Run(tmp_path / "r").locked(),
    ):
        pass
    with Run(tmp_path / "r").locked():
        pass


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"format_version": 99}', "written by a newer alfine .format 99"), ("[]", "is damaged")]
)
def test_damaged_manifests(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=message):
        Run.open(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"


def test_jsonl_keeps_line_separators_inside_strings(tmp_path):
    rows = [{"a": "x\u2028y\x85z\n"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_machine_trouble_is_one_line_with_exit_code_1(tmp_path):
    with pytest.raises(MachineError, match="GB free") as caught, machine_errors(tmp_path):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        shutil.Error([("a", "b", "[Errno 5] Input/output error: 'b'")]),
        SafetensorError('Error while serializing: I/O error: Input/output error (os error 5) at path "b"'),
        Exception("Input/output error (os error 5)"),  # what the library of tokenizers raises
    ],
    ids=["system", "copied folder", "safetensors", "tokenizers"],
)
def test_machine_trouble_is_known_in_every_librarys_words(tmp_path, error):
    with pytest.raises(MachineError, match="input/output error"), machine_errors(tmp_path):
        raise error


def test_what_is_no_trouble_of_the_machine_passes(tmp_path):
    with pytest.raises(KeyError), machine_errors(tmp_path):
        raise KeyError("x")


def test_tensors_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"format": "1"})
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


def test_digest_is_stable_and_sensitive():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert json.dumps(digest("é"))
