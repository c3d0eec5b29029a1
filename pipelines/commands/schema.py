"""`alfine schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipelines.config.json_schema import SCHEMA_ID, config_schema
from pipelines.errors import ConfigError
from pipelines.storage.files import os_errors_as_machine_error, write_text


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="File of the schema; the terminal if missing.")
def schema(output: Path | None) -> None:
    """Write the JSON Schema of a config, for editors: completion, descriptions and errors.

    \b
    Example:
      alfine schema --output config.schema.json
    """
    text = json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    if output.exists() and not _is_schema(output):
        raise ConfigError(f"--output {output} exists and is no schema of alfine; name another file, or remove it")
    with os_errors_as_machine_error(output.parent):
        write_text(output, text)
    click.echo(
        f"written: {output}; in a YAML beside it, write as first line # yaml-language-server: $schema={output.name}",
        err=True,
    )


def _is_schema(path: Path) -> bool:
    """Whether a file was written by this command, so that it may be written again."""
    try:
        return f'"$id": "{SCHEMA_ID}"' in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
