"""Cases on the pretend device in processes of their own, one for each machine: what stands in for CUDA stays installed."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def results_by_machine(module, file, tmp_path_factory):
    """A function that returns what `module` writes to `file` for a machine. It runs when it is first asked for."""

    @functools.cache
    def of_machine(machine):
        folder = tmp_path_factory.mktemp(machine)
        finished = subprocess.run(
            [sys.executable, "-m", module, str(folder), machine],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads((folder / file).read_text())

    return of_machine
