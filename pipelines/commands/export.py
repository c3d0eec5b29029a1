"""`alfine export`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError
from pipelines.exporting.export import TARGETS, ExportOptions
from pipelines.exporting.export import export as export_run
from pipelines.exporting.merged import DTYPES
from pipelines.exporting.source import DEFAULT_ROWS_PER_TASK


@click.command()
@run_argument
@click.option("--to", "target", type=click.Choice(TARGETS), default="merged", show_default=True, help="What to write.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Dtype of merged weights. [default: that of the base]")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The folder to write. [default: export/TARGET in the run]"
)
@click.option(
    "--check-rows",
    default=str(DEFAULT_ROWS_PER_TASK),
    show_default=True,
    help="Test rows per task that the export is asked: a number, `all`, or 0 for no check.",
)
@click.option("--force", is_flag=True, help="Replace an earlier export.")
def export(run: Path, target: str, dtype: str | None, output: Path | None, check_rows: str, force: bool) -> None:
    """Write the tuned model for other programs.

    `merged` is one model with all weights in safetensors, `adapter` a PEFT folder without its base. Both have the
    tokenizer, the chat template and the stop tokens that were trained.

    \b
    Examples:
      alfine export runs/quickstart
      alfine export runs/quickstart --to adapter --output my-adapter
    """
    quiet_libraries()
    options = ExportOptions(target, dtype, _rows(check_rows), force)
    output = output or run / "export" / target
    export_run(run, options, output, ConsoleReporter())
    click.echo(output)


def _rows(text: str) -> int | None:
    """The value of --check-rows, None for `all`. Raises ConfigError."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"--check-rows {text!r} is neither a number nor `all`; write --check-rows 32")
    return int(text)
