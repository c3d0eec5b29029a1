"""Completions on a device that is not the CPU: nothing mixes devices, and the host rarely waits.

The cases are in `pretend_completions.py`, which runs in a process of its own for each machine.
"""

import pytest

from pipelines.evaluation.slot_decoding import READ_EVERY
from tests.evaluation.pretend_completions import NUM_TOKENS, REQUESTS, ROWS
from tests.pretend_process import results_by_machine
from tests.pretend_run import MACHINES

pytestmark = pytest.mark.ludwig

WAYS = ("generate", "slots", "slots, merged")


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """The counts of a machine, computed when they are first asked for."""
    return results_by_machine("tests.evaluation.pretend_completions", "counts.json", tmp_path_factory)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("way", WAYS)
def test_neither_launches_nor_waits_depend_on_the_number_of_rows(counts, way, machine):
    few, many = (counts(machine)[way][str(rows)] for rows in ROWS)
    assert set(few["tokens"]) == set(many["tokens"]) == {NUM_TOKENS}
    assert many["kernels"] == few["kernels"]
    assert many["waits"] == few["waits"]


@pytest.mark.parametrize("machine", ["a100", "t4"])
def test_decoding_in_slots_waits_for_the_losses_and_every_few_tokens(counts, machine):
    result = counts(machine)["slots"][str(ROWS[1])]
    assert sum(result["waits"].values()) == 1 + NUM_TOKENS // READ_EVERY


def test_a_merged_adapter_launches_no_more_than_the_base(counts):
    merged, unmerged = (counts("a100")[way][str(ROWS[1])]["kernels"] for way in ("slots, merged", "slots"))
    adapted_layers = 2 * 3
    assert unmerged - merged > 4 * adapted_layers * NUM_TOKENS


@pytest.mark.parametrize("machine", MACHINES)
def test_the_engine_answers_every_kind_of_request(counts, machine):
    """Sampling computes in fp64, which the device does not have."""
    answers = counts(machine)["engine"]
    assert set(answers) == set(REQUESTS)
    for base, tuned in answers.values():
        assert base and tuned


@pytest.mark.parametrize("way", WAYS)
def test_the_tokens_are_those_of_generate_in_fp32(counts, way):
    """In fp16 a few of two dozen completions have another token somewhere, and all that follow it."""
    expected = counts("apple")["generate"][str(ROWS[1])]["text"]
    assert counts("apple")[way][str(ROWS[1])]["text"] == expected
    in_fp16 = counts("t4")[way][str(ROWS[1])]["text"]
    assert sum(a == b for a, b in zip(in_fp16, expected, strict=True)) >= 0.8 * ROWS[1]
