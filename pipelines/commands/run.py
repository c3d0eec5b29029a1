"""`alfine run`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pipelines.commands.arguments import RUNS, check_run_name, config_argument, overrides_argument
from pipelines.commands.results import print_result
from pipelines.config.job import load_job
from pipelines.console.reporter import ConsoleReporter
from pipelines.report import analyse
from pipelines.run import run_job
from pipelines.storage.run_folder import Run


@click.command()
@config_argument
@overrides_argument
@click.option("--name", help="The run's folder in runs/. [default: the config's name]")
def run(config: Path, overrides: tuple[str, ...], name: str | None) -> None:
    """Fine-tune and compare base and tuned. If interrupted, run the same command again to resume.

    \b
    Exit codes:
      1  system error (disk, memory, permissions)
      2  error in the config or the data
      3  a gate of the config failed

    \b
    Example:
      alfine run ludwig_configs/quickstart.yaml --name first trainer.epochs=2
    """
    folder = RUNS / check_run_name(name if name is not None else config.stem)
    job = load_job(config, overrides)
    command = shlex.join(["alfine", "run", str(config), "--name", folder.name, *overrides])
    run_job(job, Run(folder), command, ConsoleReporter())
    print_result(folder, analyse(folder))
