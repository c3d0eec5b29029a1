"""Trainings on a device that is not the CPU: nothing mixes devices, few kernels are launched, and the host rarely waits.

The cases are in `pretend_cases.py`, which runs in a process of its own for each machine that the device stands in for.
"""

import math

import pytest

from tests.pretend_process import results_by_machine
from tests.training.pretend_cases import CASES_BY_MACHINE

pytestmark = pytest.mark.ludwig

MAX_WAITS = 2
"""Times the host may wait for the device in a training step. Where copies cannot be queued, it also waits for each."""
MAX_KERNELS = 4_500
"""Kernels of a step on the rows of gpu_lora.yaml with 28 layers and LoRA on 7 matrices."""
PAIRS = [(machine, case) for machine, cases in CASES_BY_MACHINE.items() for case in cases]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of a machine, computed when they are first asked for."""
    return results_by_machine("tests.training.pretend_cases", "results.json", tmp_path_factory)


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
