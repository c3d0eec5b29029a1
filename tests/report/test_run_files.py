"""Damaged and missing files: an error of one line that names the file, and the old report remains."""

import re

import pytest

from pipelines.errors import RunError
from pipelines.report import write_report
from tests.report.run_folder import REPORT_FILES, make_run, write_old_report


def rewrite(run, name, change):
    path = run / name
    path.write_text(change(path.read_text()))


def remove(run, name):
    (run / name).unlink()


DAMAGE = {
    "broken manifest": ("manifest.json", lambda text: text[:-9], "manifest.json is damaged"),
    "other format": (
        "manifest.json",
        lambda text: text.replace('"format_version": 2', '"format_version": 9'),
        "this version reads 2",
    ),
    "a manifest without its seed": ("manifest.json", lambda text: text.replace('"seed"', '"sead"'), "seed"),
    "broken config": ("config.yaml", lambda text: "a: [", "not YAML"),
    "config without metrics": ("config.yaml", lambda text: text.replace("metric", "matric"), "metric"),
    "half a line": ("tuned/completions.jsonl", lambda text: text[: len(text) // 2], "jsonl:21: broken JSON"),
    "half the rows": (
        "tuned/completions.jsonl",
        lambda text: "".join(text.splitlines(True)[:20]),
        "20 rows, but base has 40",
    ),
    "other order": (
        "tuned/completions.jsonl",
        lambda text: "".join(text.splitlines(True)[::-1]),
        "jsonl:1: not the row",
    ),
    "no rows": ("base/completions.jsonl", lambda text: "", "no rows"),
    "no rows of the task": ("config.yaml", lambda text: text.replace("mood:", "other:"), "'other' has no rows"),
    "NaN": (
        "base/completions.jsonl",
        lambda text: text.replace("1.5", "NaN", 1),
        "jsonl:1: reference_nll is nan: the training diverged",
    ),
    "infinity": ("model/training.json", lambda text: text.replace("371.2", "1e999"), "seconds is inf"),
    "a loss as this program writes it": (
        "tuned/completions.jsonl",
        lambda text: re.sub('"reference_nll": [0-9.]+', '"reference_nll": "NaN"', text, count=1),
        "reference_nll is NaN: the training diverged",
    ),
    "wrong type": ("tuned/completions.jsonl", lambda text: text.replace('"row": 7', '"row": "x"'), "jsonl:8: row"),
    "empty answers": (
        "tuned/completions.jsonl",
        lambda text: re.sub('"completion": "[^"]*"', '"completion": " "', text),
        "every completion is empty",
    ),
    "not UTF-8": ("tuned/sample_prompts.jsonl", None, "not UTF-8"),
}


@pytest.mark.parametrize("name, change, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_and_the_old_report_remains(tmp_path, name, change, message):
    run = make_run(tmp_path / "r")
    before = write_old_report(run)
    if change:
        rewrite(run, name, change)
    else:
        (run / name).write_bytes(b"\xff\xfe")
    assert_rejected(run, before, message)


@pytest.mark.parametrize(
    "name", ["manifest.json", "config.yaml", "base/completions.jsonl", "tuned/completions.jsonl", "model/training.json"]
)
def test_a_missing_file_is_named(tmp_path, name):
    run = make_run(tmp_path / "r")
    before = write_old_report(run)
    remove(run, name)
    assert_rejected(run, before, f"{name}: the file is missing: the run is not finished")


def assert_rejected(run, before, message):
    with pytest.raises(RunError) as caught:
        write_report(run)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(run))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert [(run / name).read_bytes() for name in REPORT_FILES] == before
    assert not list(run.glob(".*part"))


def test_no_run_folder(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        write_report(tmp_path / "none")
