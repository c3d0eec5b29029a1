"""Trainings on a device that is not the CPU: nothing mixes devices, few kernels are launched, and the host rarely waits.

The cases are in `pretend_cases.py`, which runs in a process of its own.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.pretend_cases import CASES

pytestmark = pytest.mark.ludwig

ROOT = Path(__file__).parents[2]
MAX_WAITS = 2
"""Times the host may wait for the device in a training step."""
MAX_KERNELS = 4_500
"""Kernels of a step on the rows of gpu_lora.yaml with 28 layers and LoRA on 7 matrices."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretend")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.training.pretend_cases", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_nothing_mixes_devices(results, case):
    result = results[case]
    assert result["error"] is None, result["traceback"][-3000:]
    assert result["losses"] and all(map(math.isfinite, result["losses"]))


@pytest.mark.parametrize("case", CASES)
def test_the_host_rarely_waits(results, case):
    for step in results[case]["steps"]:
        assert sum(step["waits"].values()) <= MAX_WAITS, step["waits"]


def kernels(result):
    """Launches of the last step; the first also creates the optimizer's state."""
    return sum(result["steps"][-1]["kernels"].values())


def test_launches_of_the_step_of_gpu_lora(results):
    assert kernels(results["gpu-lora"]) <= MAX_KERNELS


def test_launches_with_dense_attention(results):
    """The path of a T4, of fp32 on CUDA and of MPS."""
    assert kernels(results["gpu-lora-dense"]) <= MAX_KERNELS


def test_launches_do_not_depend_on_the_number_of_rows(results):
    few, many = (kernels(results[f"gpu-lora-8-layers-{rows}-rows"]) for rows in (4, 16))
    assert many == pytest.approx(few, rel=0.05)
