"""Findings of checks: problems with their severity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import DataError, Problem

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem in a job's data. An `error` stops the run, a `warning` is printed and recorded."""

    severity: Severity
    problem: Problem


def raise_on_errors(findings: Iterable[Finding]) -> None:
    """Raises DataError with every finding of severity `error`."""
    errors = [finding.problem for finding in findings if finding.severity == "error"]
    if errors:
        raise DataError(errors)
