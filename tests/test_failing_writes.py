"""A short form of `python -m tests.failing_writes`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ludwig
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the library that makes writes fail")
def test_failed_writes_end_with_the_result_of_the_uninterrupted_run():
    command = [sys.executable, "-m", "tests.failing_writes", "--first", "40"]
    process = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    assert "40 writes failed once each" in process.stdout
