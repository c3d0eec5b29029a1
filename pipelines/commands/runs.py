"""`alfine runs`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipelines.commands.arguments import RUNS
from pipelines.commands.results import prepare_sandbox_of
from pipelines.report import analyse
from pipelines.report.terminal import print_runs
from pipelines.storage.run_folder import Run


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
def runs(folders: tuple[Path, ...]) -> None:
    """List runs and their results: one row per run and task. The default is every run in runs/.

    \b
    Examples:
      alfine runs
      alfine runs runs/first runs/second
    """
    selected = [Run.open(folder) for folder in folders or sorted(path.parent for path in RUNS.glob("*/manifest.json"))]
    # A folder that the user names is read, finished or not; reading explains what is missing.
    finished = [run.folder for run in selected if folders or "report" in run.manifest["stages"]]
    if not selected:
        click.echo(f"no runs in {RUNS}/; create one with: alfine run CONFIG")
    if finished:
        prepare_sandbox_of(*finished)
        print_runs([analyse(folder) for folder in finished], Console(highlight=False))
    for run in selected:
        if run.folder not in finished and "models" not in run.manifest:  # not a comparison
            click.echo(f"{run.folder}: not finished; resume it with: {run.command}")
