"""Output of the verbs about a finished run or comparison."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from pipelines.console.reporter import ConsoleReporter
from pipelines.report import Analysis
from pipelines.report.run_files import read_run
from pipelines.report.terminal import print_summary
from pipelines.scoring.sandbox import prepare_sandbox

GATE_FAILED = 3
"""The exit code of `run`, `report` and `compare` if a gate of the config failed, for CI."""


def prepare_sandbox_of(*folders: Path) -> None:
    """Compiles the sandbox, with a line on stderr, if a metric of the runs in these folders executes code."""
    prepare_sandbox(
        {metric for folder in folders for metric in read_run(folder).metrics.values()}, ConsoleReporter().status
    )


def print_result(folder: Path, analysis: Analysis) -> None:
    """Prints the verdict, the gates and the tables. Exits with GATE_FAILED if a gate failed."""
    print_summary(analysis, Console(highlight=False))
    click.echo(f"report: {folder / 'report.html'}")
    if any(not gate.passed for gate in analysis.gates):
        sys.exit(GATE_FAILED)
