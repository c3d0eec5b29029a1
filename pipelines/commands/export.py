"""`alfine export`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError
from pipelines.exporting.export import DEFAULT_QUANTIZATION, GGUF_TARGETS, TARGETS, ExportOptions
from pipelines.exporting.export import export as export_run
from pipelines.exporting.gguf import QUANTIZATIONS
from pipelines.exporting.merged import DTYPES
from pipelines.exporting.records import ExportRecord
from pipelines.exporting.source import DEFAULT_ROWS_PER_TASK
from pipelines.exporting.summary import check_lines

CHECK_FAILED = 3
"""The exit code if the export does not answer as the run does."""


@click.command()
@run_argument
@click.option("--to", "target", type=click.Choice(TARGETS), default="merged", show_default=True, help="What to write.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Dtype of merged weights. [default: that of the base]")
@click.option(
    "--quantize",
    type=click.Choice(QUANTIZATIONS),
    help=f"Type of the weights in a GGUF file. [default: {DEFAULT_QUANTIZATION}]",
)
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
def export(
    run: Path, target: str, dtype: str | None, quantize: str | None, output: Path | None, check_rows: str, force: bool
) -> None:
    """Write the tuned model for other programs.

    `merged` is one model with all weights in safetensors, `adapter` a PEFT folder without its base, `gguf` a file for
    llama.cpp, `ollama` that file with a Modelfile. Each has the chat template and the stop tokens that were trained.

    The export is then loaded by transformers or llama.cpp, without alfine, and asked the run's test prompts. The result
    is in export.json. The exit code is 3 if its answers are not those of the run, or its scores significantly worse.

    \b
    Examples:
      alfine export runs/quickstart
      alfine export runs/quickstart --to adapter --output my-adapter
      alfine export runs/quickstart --to gguf --quantize q4_k_m
    """
    quiet_libraries()
    check_quantize(target, quantize)
    options = ExportOptions(target, dtype, quantize or DEFAULT_QUANTIZATION, _rows(check_rows), force)
    output = output or run / "export" / target
    record = export_run(run, options, output, ConsoleReporter())
    print_check(record)
    click.echo(f"export: {output}")
    if record.check is not None and not record.check.passed:
        sys.exit(CHECK_FAILED)


def print_check(record: ExportRecord) -> None:
    """Prints the result of the check, and on stderr why it did not pass."""
    check = record.check
    if check is None:
        click.echo("check: none (--check-rows 0)")
        return
    for line in check_lines(check):
        click.echo(line)
    for problem in check.problems:
        click.echo(f"check failed: {problem}", err=True)


def check_quantize(target: str, quantize: str | None) -> None:
    """Raises ConfigError for --quantize with a target that has no GGUF file."""
    if quantize is not None and target not in GGUF_TARGETS:
        raise ConfigError(
            f"--quantize is for --to gguf and --to ollama; remove it, or write --to gguf instead of {target}"
        )


def _rows(text: str) -> int | None:
    """The value of --check-rows, None for `all`. Raises ConfigError."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"--check-rows {text!r} is neither a number nor `all`; write --check-rows 32")
    return int(text)
