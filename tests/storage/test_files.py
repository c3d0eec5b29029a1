"""Files and folders are complete or absent; errors of the system are one line."""

import json
import os
import shutil
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.errors import MachineError
from pipelines.storage.files import (
    atomic_dir,
    atomic_write,
    digest,
    os_errors_as_machine_error,
    read_jsonl,
    write_jsonl,
    write_tensors,
    write_text,
)


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


def test_os_errors_are_one_line_with_exit_code_1(tmp_path):
    with pytest.raises(MachineError, match="GB free") as caught, os_errors_as_machine_error(tmp_path):
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
    ids=["os", "shutil", "safetensors", "tokenizers"],
)
def test_os_errors_of_every_library_are_recognized(tmp_path, error):
    with pytest.raises(MachineError, match="input/output error"), os_errors_as_machine_error(tmp_path):
        raise error


def test_other_errors_are_raised_unchanged(tmp_path):
    with pytest.raises(KeyError), os_errors_as_machine_error(tmp_path):
        raise KeyError("x")


def test_a_failed_write_of_tensors_leaves_the_old_file(tmp_path, monkeypatch):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"format": "1"})
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


def test_digest_is_stable_and_sensitive():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert json.dumps(digest("é"))


def test_atomic_write_names_the_file_in_errors_and_removes_the_staging_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a") as staging:
        staging.write_text("x")
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []


def test_atomic_dir_replaces_the_folder_at_the_end(tmp_path):
    folder = tmp_path / "a"
    for content in ("old", "new"):
        with atomic_dir(folder) as staging:
            assert staging == tmp_path / "a.partial" and not staging.exists()
            write_text(staging / "x", content)
            assert not folder.exists() or (folder / "x").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"] and (folder / "x").read_text() == content


def test_an_atomic_dir_that_fails_leaves_the_old_folder(tmp_path):
    write_text(tmp_path / "a" / "x", "old")
    write_text(tmp_path / "a.partial" / "y", "of an interrupted attempt")
    with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / "a") as staging:
        assert not staging.exists()
        write_text(staging / "x", "new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "x").read_text() == "old"


def test_an_atomic_dir_that_keeps_an_existing_folder(tmp_path):
    with atomic_dir(tmp_path / "a", ".mine.partial", keep_existing=True) as staging:
        write_text(staging / "x", "mine")
        write_text(tmp_path / "a" / "x", "of another process")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "of another process"
