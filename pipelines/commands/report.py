"""`alfine report`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipelines.commands.arguments import run_argument
from pipelines.commands.results import prepare_sandbox_of, print_result
from pipelines.report import write_report
from pipelines.report.ratings import merge, read_ratings
from pipelines.report.terminal import print_preference
from pipelines.storage.run_folder import Run


@click.command()
@run_argument
@click.option(
    "--ratings", multiple=True, type=click.Path(path_type=Path), help="Blind ratings, downloaded from report.html."
)
def report(run: Path, ratings: tuple[Path, ...]) -> None:
    """Show the result of a run and write its report files again.

    Prints the verdict, the gates and the scores per task; writes report.html, report.md and report.json. The exit code
    is 3 if a gate failed.

    \b
    Examples:
      alfine report runs/quickstart
      alfine report runs/quickstart --ratings anna.json --ratings ben.json
    """
    folder = Run.open(run).folder
    prepare_sandbox_of(folder)
    analysis = write_report(folder)
    if ratings:
        preference = merge([read_ratings(path, analysis) for path in ratings])
        print_preference(preference, analysis, Console(highlight=False))
    print_result(folder, analysis)
