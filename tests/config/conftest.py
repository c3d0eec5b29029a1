from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.config.problems import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config and returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "job.yaml"
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
        return path

    return write
