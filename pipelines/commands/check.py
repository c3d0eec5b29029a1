"""`alfine check`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.checks.job import check_job
from pipelines.commands.arguments import config_argument, overrides_argument
from pipelines.config.job import load_job
from pipelines.console.plain_text import count


@click.command()
@config_argument
@overrides_argument
def check(config: Path, overrides: tuple[str, ...]) -> None:
    """Check a YAML file and its data; nothing is trained. All errors are reported at once.

    \b
    Example:
      alfine check ludwig_configs/quickstart.yaml
    """
    job = load_job(config, overrides)
    result = check_job(job)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    for problem in result.warnings:
        click.echo(f"warning: {problem}", err=True)
    click.echo(f"{config}: OK ({count(len(job.pipeline.tasks), 'task')}, {count(result.num_rows, 'row')})")
