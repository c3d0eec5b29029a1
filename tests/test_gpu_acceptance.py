"""The dry run of the GPU acceptance tests on a CPU, with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_acceptance.registry import Check, Context, at_least, at_most

ROOT = Path(__file__).parents[1]
DRY_RUN = {
    1: "environment,attention_paths,steps_equal_hugging_face,cuda_graphs,fused_kernels",
    3: "completions_135m,evaluation_pass,full_fine_tuning_1_5b",
}
"""The checks of each part that are run; the others repeat what tests of their own do on tiny models."""


@pytest.mark.ludwig
@pytest.mark.parametrize("part", DRY_RUN)
def test_dry_run_on_a_cpu_passes(tmp_path, part):
    command = [sys.executable, "-m", "tests.gpu_acceptance", "--part", str(part), "--device", "cpu"]
    command += ["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--checks", DRY_RUN[part]]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    results = {line["check"]: line for line in json.loads((tmp_path / "results.json").read_text()) if "status" in line}
    # Without a GPU there is no compute capability to judge.
    assert {name: line["status"] for name, line in results.items()} == dict.fromkeys(DRY_RUN[part].split(","), "passed")
    assert "| part | check |" in (tmp_path / "results.md").read_text()


def run(tmp_path, function, *bounds, seconds=0.0, device="cuda", time_left=3600.0):
    from tests.gpu_acceptance.results import run_check  # torch: seconds

    context = Context(device, tmp_path)
    context.deadline += time_left - 3600
    check = Check("example", 1, seconds, bounds, function, needs_gpu=False)
    run_check(check, context, tmp_path / "results.jsonl")
    return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]


def test_a_result_is_judged_by_its_bounds(tmp_path):
    def measure(context):
        context.record("first half", {"speed": 1.0})
        return {"speed": 2.0, "error": 0.5}

    first, result = run(tmp_path, measure, at_least("speed", 2.0), at_most("error", 0.1), at_least("missing", 0.0))
    assert first["check"] == "example: first half" and first["measurements"] == {"speed": 1.0}
    assert result["status"] == "failed"
    assert result["bounds"] == {"speed >= 2": True, "error <= 0.1": False, "missing >= 0": False}


def test_on_a_cpu_only_portable_bounds_count(tmp_path):
    bounds = (at_least("speed", 2.0), at_most("error", 0.1, portable=True))
    (result,) = run(tmp_path, lambda context: {"speed": 0.0, "error": 0.0}, *bounds, device="cpu")
    assert result["status"] == "passed" and list(result["bounds"]) == ["error <= 0.1"]


def test_an_exception_is_a_result(tmp_path):
    def fail(context):
        raise ValueError("no such kernel")

    (result,) = run(tmp_path, fail)
    assert result["status"] == "error" and result["error"] == "ValueError: no such kernel"


def test_a_check_that_no_longer_fits_is_skipped(tmp_path):
    (result,) = run(tmp_path, lambda context: {}, seconds=30.0, time_left=20.0)
    assert result["status"] == "skipped" and "do not fit" in result["reason"]
