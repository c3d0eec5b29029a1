"""Completions on a device that is not the CPU: nothing mixes devices, and the host rarely waits.

The cases are in `pretend_completions.py`, which runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.evaluation.slot_decoding import READ_EVERY
from tests.evaluation.pretend_completions import NUM_TOKENS, REQUESTS, ROWS

pytestmark = pytest.mark.ludwig

ROOT = Path(__file__).parents[2]
WAYS = ("generate", "slots", "slots, merged")


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretend")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.pretend_completions", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "counts.json").read_text())


@pytest.mark.parametrize("way", WAYS)
def test_neither_launches_nor_waits_depend_on_the_number_of_rows(counts, way):
    few, many = (counts[way][str(rows)] for rows in ROWS)
    assert set(few["tokens"]) == set(many["tokens"]) == {NUM_TOKENS}
    assert many["kernels"] == few["kernels"]
    assert many["waits"] == few["waits"]


def test_decoding_in_slots_waits_for_the_losses_and_every_few_tokens(counts):
    result = counts["slots"][str(ROWS[1])]
    assert sum(result["waits"].values()) == 1 + NUM_TOKENS // READ_EVERY


def test_a_merged_adapter_launches_no_more_than_the_base(counts):
    merged, unmerged = (counts[way][str(ROWS[1])]["kernels"] for way in ("slots, merged", "slots"))
    adapted_layers = 2 * 3
    assert unmerged - merged > 4 * adapted_layers * NUM_TOKENS


def test_the_engine_answers_every_kind_of_request(counts):
    """Sampling computes in fp64, which the device does not have."""
    assert set(counts["engine"]) == set(REQUESTS)
    for base, tuned in counts["engine"].values():
        assert base and tuned
