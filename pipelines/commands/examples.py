"""`alfine examples`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipelines.commands.arguments import run_argument
from pipelines.commands.results import prepare_sandbox_of
from pipelines.errors import RunError
from pipelines.report import analyse
from pipelines.report.examples import ChangeFilter, print_examples, select_examples
from pipelines.storage.run_folder import Run


@click.command()
@run_argument
@click.option("--task", help="Only examples of this task.")
@click.option("--worse", "change", flag_value="worse", help="Only examples that got worse.")
@click.option("--better", "change", flag_value="better", help="Only examples that got better.")
@click.option("--all", "change", flag_value="all", default=True, help="All examples, the worst first. [default]")
def examples(run: Path, task: str | None, change: ChangeFilter) -> None:
    """Page through the examples of a run, the completions of both models side by side.

    \b
    Example:
      alfine examples runs/quickstart --task code --worse
    """
    folder = Run.open(run).folder
    prepare_sandbox_of(folder)
    analysis = analyse(folder)
    if task is not None and task not in analysis.tasks:
        raise RunError(f"{run} has no task {task!r}; it has {', '.join(analysis.tasks)}")
    matching = select_examples(analysis, task, change)
    if not matching:
        click.echo("no matching examples")
    print_examples(analysis, matching, Console(highlight=False))
