"""Runs a function in two processes of a process group on this machine.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.two_processes MODULE FUNCTION FOLDER
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
TIMEOUT = timedelta(seconds=6)
"""Of the default group."""


def run_in_two_processes(function: Callable[[Path], Any], folder: Path) -> list[Any]:
    """Calls `function(folder)`, a function of a module, in both processes. Returns the two results, by rank."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.two_processes"]
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, function.__module__, function.__name__, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-9000:]
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(2)]


def main(module: str, function: str, folder: Path) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    result = getattr(importlib.import_module(module), function)(folder)
    torch.save(result, folder / f"result-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
