"""Stages are done once; files are whole; a folder belongs to one process."""

import json

import pytest

from pipelines.errors import MachineError, RunError
from pipelines.runs import Run, digest, machine_errors, read_jsonl, write_jsonl, write_text


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


def test_digest_is_stable_and_sensitive():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert json.dumps(digest("é"))
