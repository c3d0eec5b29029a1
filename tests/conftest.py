import pytest

from tests.jobs import make_job, project

__all__ = ["compiled_sandbox", "make_job", "project"]


@pytest.fixture(scope="session")
def compiled_sandbox():
    """The sandbox's interpreter out of the user's own cache folder, compiled there where it is missing (a minute or two)."""
    from pipelines.scoring.wasm_interpreter import compiled

    compiled()
