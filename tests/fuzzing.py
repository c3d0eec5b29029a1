"""Helpers of the fuzz tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings

from pipelines.errors import AlfineError

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def edit_bytes(raw: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Replaces bytes. Each edit is (offset, number of bytes to remove, bytes to insert)."""
    for offset, length, inserted in edits:
        offset %= len(raw) + 1
        raw = raw[:offset] + inserted + raw[offset + length :]
    return raw


def assert_one_line_each(error: AlfineError, file: str | Path) -> None:
    """Every problem is one printable line about `file` or a data file."""
    assert error.problems
    for problem in error.problems:
        text = str(problem)
        assert text.strip() and text.isprintable() and "Traceback" not in text, text
        assert len(text) < 1000, text
        assert problem.file is None or Path(problem.file).name == Path(file).name or "data" in str(problem.file), text
