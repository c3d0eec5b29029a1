"""`alfine predict`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.plain_text import encodes_unicode
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.prediction.outputs import check_output, write_predictions
from pipelines.prediction.predict import predict as predict_rows
from pipelines.storage.run_folder import Run
from pipelines.storage.strict_json import dump


@click.command()
@run_argument
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", help="The task of the rows. [default: the run's only task, or the column `task`]")
@click.option("--raw", is_flag=True, help="Use the column `prompt` as the prompt, without a task's template.")
@click.option("--output", type=click.Path(path_type=Path), help="The file to write. [default: standard output]")
def predict(run: Path, file: Path, task: str | None, raw: bool, output: Path | None) -> None:
    """Complete new rows with a tuned model, in the prompt template of their task.

    The output is JSON Lines: each row's own columns, the completion in `prediction`, and in `prediction_finish_reason`
    whether the model stopped (`stop`) or reached its limit (`length`). The thought of a reasoning model is in
    `prediction_reasoning`.

    \b
    Example:
      alfine predict runs/quickstart new_reviews.jsonl --task sentiment
    """
    quiet_libraries()
    if output is not None:
        check_output(output, file)
    reporter = ConsoleReporter()
    rows = predict_rows(Run.open(run), file, task, reporter, raw)
    if output is not None:
        write_predictions(rows, output, reporter)
        return
    # JSON escapes of characters that the terminal's encoding lacks keep each line valid JSON.
    ascii_only = not encodes_unicode(sys.stdout)
    for row in rows:
        click.echo(dump(row, ascii_only=ascii_only))
