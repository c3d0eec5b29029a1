"""`alfine import`: a job from the config of another tool."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.config.job import job_from_document
from pipelines.config.yaml_parser import parse_yaml
from pipelines.console.plain_text import printable
from pipelines.errors import ConfigError
from pipelines.importing.importer import import_file
from pipelines.importing.summary import summary_lines
from pipelines.importing.yaml_writer import editor_line, to_yaml
from pipelines.storage.files import os_errors_as_machine_error, write_text


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="[TASK=]FILE", help="Rows of a task, instead of those that FILE names.")
@click.option("--output", type=click.Path(path_type=Path), help="File of the job; the terminal if missing.")
def import_config(file: Path, data: tuple[str, ...], output: Path | None) -> None:
    """Write a job from a config of Ludwig, LLaMA-Factory or axolotl. Says what was mapped, changed and dropped.

    \b
    Example:
      alfine import ludwig.yaml --data rows.csv --output job.yaml
    """
    if output is not None and output.exists():
        raise ConfigError(f"--output {output} exists already; name another file, or remove it")
    draft = import_file(file, data)
    header = [f"Written by alfine import from {file.name}, {draft.tool} config.", f"  alfine check {output or 'FILE'}"]
    header += editor_line(output)
    text = to_yaml(draft.config, draft.comments, header)
    for line in summary_lines(draft):
        click.echo(printable(line), err=True)
    job_from_document(parse_yaml(text, f"the job from {file}", has_lines=False), file)
    if output is None:
        click.echo(text, nl=False)
        return
    with os_errors_as_machine_error(output.parent):
        write_text(output, text)
    click.echo(f"written: {output}; next: alfine check {output}", err=True)
