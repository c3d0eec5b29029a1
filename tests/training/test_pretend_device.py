"""Trainings on a device that is not the CPU: nothing mixes devices, few kernels are launched, and the host rarely waits.

The cases are in `pretend_cases.py`, which runs in a process of its own for each machine that the device stands in for.
"""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.pretend_cases import CASES_BY_MACHINE

pytestmark = pytest.mark.ludwig

ROOT = Path(__file__).parents[2]
MAX_WAITS = 2
"""Times the host may wait for the device in a training step. Where copies cannot be queued, it also waits for each."""
MAX_KERNELS = 4_500
"""Kernels of a step on the rows of gpu_lora.yaml with 28 layers and LoRA on 7 matrices."""
PAIRS = [(machine, case) for machine, cases in CASES_BY_MACHINE.items() for case in cases]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of a machine, computed when they are first asked for."""

    @functools.cache
    def of_machine(machine):
        folder = tmp_path_factory.mktemp(machine)
        finished = subprocess.run(
            [sys.executable, "-m", "tests.training.pretend_cases", str(folder), machine],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads((folder / "results.json").read_text())

    return of_machine


@pytest.mark.parametrize(("machine", "case"), PAIRS)
def test_nothing_mixes_devices(results, machine, case):
    result = results(machine)[case]
    assert result["error"] is None, result["traceback"][-3000:]
    assert result["losses"] and all(map(math.isfinite, result["losses"]))


@pytest.mark.parametrize(("machine", "case"), PAIRS)
def test_the_host_rarely_waits(results, machine, case):
    for step in results(machine)[case]["steps"]:
        waits = {place: number for place, number in step["waits"].items() if not place.startswith("copy to the device")}
        assert sum(waits.values()) <= MAX_WAITS, step["waits"]
        if machine != "apple":
            assert waits == step["waits"]


def kernels(result):
    """Launches of the last step; the first also creates the optimizer's state."""
    return sum(result["steps"][-1]["kernels"].values())


@pytest.mark.parametrize(("machine", "case"), [("a100", "gpu-lora"), ("a100", "gpu-lora-dense"), ("t4", "gpu-lora")])
def test_launches_of_the_step_of_gpu_lora(results, machine, case):
    """With variable-length attention, with dense attention, and with dense attention in fp16."""
    assert kernels(results(machine)[case]) <= MAX_KERNELS


def test_launches_do_not_depend_on_the_number_of_rows(results):
    few, many = (kernels(results("a100")[f"gpu-lora-8-layers-{rows}-rows"]) for rows in (4, 16))
    assert many == pytest.approx(few, rel=0.05)


@pytest.mark.parametrize("machine", ["a100", "t4"])
def test_losses_are_those_of_a_machine_in_fp32(results, machine):
    for case in set(CASES_BY_MACHINE[machine]) & {"lora-none", "full-ewc", "gpu-lora"}:
        assert results(machine)[case]["losses"] == pytest.approx(results("apple")[case]["losses"], rel=0.02), case
