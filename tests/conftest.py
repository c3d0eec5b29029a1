import os

import pytest

# Several test processes share the cores; torch would give each of them as many threads as there are cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipelines.scoring.wasm_interpreter import compiled
from tests.jobs import make_job, project

__all__ = ["compiled_sandbox", "make_job", "project"]

LONGEST_FIRST = ("test_end_to_end", "test_failing_writes", "test_fault_injection", "test_ray")
"""Test modules that take a minute or more: started first, so that no process runs one of them after the others have
finished."""


def pytest_make_parametrize_id(config, val, argname):
    """Names bytes by their argument: every test process must find the same names, and the bytes of a compressed file may
    hold the time at which they were written."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    rank = {f"{name}.py": position for position, name in enumerate(LONGEST_FIRST)}
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def compiled_sandbox():
    """The sandbox's interpreter from the user's own cache folder, compiled if it is missing (a minute or two)."""
    compiled()
