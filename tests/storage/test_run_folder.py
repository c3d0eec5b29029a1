"""Stages run once; the manifest is valid; one process at a time has the folder."""

import json
from pathlib import Path

import pytest

from pipelines.errors import RunError
from pipelines.storage.run_folder import Run, check_same_config, config_entries


def test_a_stage_runs_once_and_again_when_its_inputs_change(tmp_path):
    calls = []
    for inputs in ("a", "a", "b"):
        run = Run(tmp_path / "r")
        run.run_stage("prepare", inputs, lambda inputs=inputs: calls.append(inputs))
    assert calls == ["a", "b"]
    assert Run.open(tmp_path / "r").manifest["stages"]["prepare"]["inputs"] == "b"


def test_an_interrupted_stage_is_not_complete(tmp_path):
    run = Run(tmp_path / "r")
    run.run_stage("train", "a", lambda: None)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run_stage("train", "b", interrupted)
    assert "train" not in Run(tmp_path / "r").manifest["stages"]


def test_a_run_folder_is_locked_by_one_process(tmp_path):
    with (
        Run(tmp_path / "r").locked(),
        pytest.raises(RunError, match="locked by another alfine"),
        Run(tmp_path / "r").locked(),
    ):
        pass
    with Run(tmp_path / "r").locked():
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"format_version": 1}', "written by an older alfine .format 1"),
        ('{"format_version": 99}', "written by a newer alfine .format 99"),
        ("[]", "is damaged"),
    ],
)
def test_damaged_manifests(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=message):
        Run.open(tmp_path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a run of job.yaml; returns its folder, which is the working directory."""
    folder = tmp_path / "project"
    (folder / "runs" / "one").mkdir(parents=True)
    for name in ("job.yaml", "other.yaml"):
        (folder / name).write_text("pipeline: {}")
    monkeypatch.chdir(folder)
    Run(Path("runs/one")).update(**config_entries(Path("job.yaml"), Path("runs/one")))
    return folder


def check(config, folder="runs/one"):
    check_same_config(Path(config), Run(Path(folder)))


def test_the_same_config_under_other_paths(project, tmp_path, monkeypatch):
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
        check(config)
    monkeypatch.chdir(tmp_path)
    check("project/job.yaml", "project/runs/one")
    monkeypatch.chdir(project / "runs")
    check("../job.yaml", "one")


def test_another_config_of_the_same_name_in_another_folder(project, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "job.yaml").write_text("pipeline: {}")
    (elsewhere / "runs").symlink_to(project / "runs")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RunError, match=r"runs/one was created by job\.yaml; use another name for job\.yaml"):
        check("job.yaml")
    check(project / "job.yaml")


def test_a_moved_project_keeps_its_runs(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    check("job.yaml")
    Path("runs/one").rename("runs/two")
    check("job.yaml", "runs/two")
    with pytest.raises(RunError, match=r"was created by job\.yaml; use another name"):
        check("other.yaml", "runs/two")


def test_a_moved_config_is_told_where_to_go(project):
    Path("job.yaml").rename("new.yaml")
    with pytest.raises(
        RunError,
        match=rf"for new\.yaml .*; if the config was moved, move it back to {project}/job\.yaml",
    ):
        check("new.yaml")


def test_a_manifest_without_the_relative_path(project):
    manifest = json.loads(Path("runs/one/manifest.json").read_text())
    del manifest["config_from_run"]
    Path("runs/one/manifest.json").write_text(json.dumps(manifest))
    check(project / "job.yaml")
    with pytest.raises(RunError, match="was created by"):
        check("other.yaml")


def test_the_command_of_a_run_that_has_saved_none(tmp_path):
    run = Run(tmp_path / "my run")
    run.manifest["config"] = "a $b.yaml"
    assert run.command == "alfine run 'a $b.yaml' --name 'my run'"
