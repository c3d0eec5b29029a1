import pytest

from tests.evaluation.retention_evals.files import write_rows


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with a file of rows for each kind, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    write_rows(tmp_path)
    return tmp_path
