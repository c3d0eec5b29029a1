"""Severity of findings."""

import pytest

from pipelines.checks.findings import Finding, raise_on_errors
from pipelines.errors import DataError, Problem


def test_warnings_do_not_raise():
    raise_on_errors([Finding("warning", Problem("doubtful"))])


def test_every_error_is_raised():
    findings = [Finding("error", Problem(text)) for text in ("one", "two")]
    with pytest.raises(DataError) as caught:
        raise_on_errors([Finding("warning", Problem("doubtful")), *findings])
    assert [problem.message for problem in caught.value.problems] == ["one", "two"]
