"""Stages are done once; files are whole; a folder belongs to one process."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.errors import MachineError, RunError
from pipelines.storage.run_folder import (
    Run,
    config_entries,
    digest,
    machine_errors,
    read_jsonl,
    refuse_other_config,
    write_jsonl,
    write_tensors,
    write_text,
)


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
    ("text", "message"),
    [("{", "is damaged"), ('{"format_version": 99}', "written by a newer alfine .format 99"), ("[]", "is damaged")],
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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a run of job.yaml; returns its folder, in which the process stands."""
    folder = tmp_path / "project"
    (folder / "runs" / "one").mkdir(parents=True)
    for name in ("job.yaml", "other.yaml"):
        (folder / name).write_text("pipeline: {}")
    monkeypatch.chdir(folder)
    Run(Path("runs/one")).update(**config_entries(Path("job.yaml"), Path("runs/one")))
    return folder


def claim(config, folder="runs/one"):
    refuse_other_config(Path(config), Run(Path(folder)))


def test_the_same_config_however_it_is_written(project, tmp_path, monkeypatch):
    Path("link.yaml").symlink_to("job.yaml")
    (tmp_path / "alias").symlink_to(project)
    Path("hard.yaml").hardlink_to("job.yaml")
    for config in (
        "job.yaml",
        "./job.yaml",
        "runs/../job.yaml",
        project / "job.yaml",
        "link.yaml",
        tmp_path / "alias" / "job.yaml",
        "hard.yaml",
    ):
        claim(config)
    monkeypatch.chdir(tmp_path)
    claim("project/job.yaml", "project/runs/one")
    monkeypatch.chdir(project / "runs")
    claim("../job.yaml", "one")


def test_another_config_of_the_same_name_in_another_folder(project, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "job.yaml").write_text("pipeline: {}")
    (elsewhere / "runs").symlink_to(project / "runs")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RunError, match=r"runs/one belongs to job\.yaml; take another name .* for job\.yaml$"):
        claim("job.yaml")
    claim(project / "job.yaml")


def test_a_project_that_is_moved_keeps_its_runs(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    claim("job.yaml")
    Path("runs/one").rename("runs/two")
    claim("job.yaml", "runs/two")
    with pytest.raises(RunError, match=r"belongs to job\.yaml; take another name"):
        claim("other.yaml", "runs/two")


def test_a_config_that_is_moved_alone_is_told_where_to_go(project):
    Path("job.yaml").rename("new.yaml")
    with pytest.raises(
        RunError,
        match=rf"for new\.yaml; where that is the same config in a new place, put it back to {project}/job\.yaml",
    ):
        claim("new.yaml")


def test_a_manifest_of_before_names_its_config_as_it_was_written(project):
    manifest = json.loads(Path("runs/one/manifest.json").read_text())
    del manifest["config_from_run"]
    Path("runs/one/manifest.json").write_text(json.dumps(manifest))
    claim(project / "job.yaml")
    with pytest.raises(RunError, match="belongs to"):
        claim("other.yaml")


def test_a_command_for_a_run_that_has_saved_none(tmp_path):
    run = Run(tmp_path / "my run")
    run.manifest["config"] = "a $b.yaml"
    assert run.command == "alfine run 'a $b.yaml' --name 'my run'"
