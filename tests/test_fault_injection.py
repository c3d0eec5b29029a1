"""A short form of `make fault-injection`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ludwig
def test_killed_runs_end_with_the_result_of_the_uninterrupted_one():
    # Another process: this one has used torch, and a fork of it could hang.
    command = [sys.executable, "-m", "tests.fault_injection", "--kills", "8", "--seed", "5"]
    process = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    assert "every run ended with the result of the uninterrupted one" in process.stdout
