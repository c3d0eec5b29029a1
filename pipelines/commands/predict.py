"""`alfine predict`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.plain_text import encodes_unicode
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import RunError
from pipelines.prediction.predict import RowPredictor, predicted_rows
from pipelines.prediction.resume import write_predictions
from pipelines.storage.run_folder import Run
from pipelines.storage.strict_json import dump


@click.command()
@run_argument
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--task", help="The task of the rows. [default: the run's only task, or the column `task`]")
@click.option("--raw", is_flag=True, help="Use the column `prompt` as the prompt, without a task's template.")
@click.option("--base", is_flag=True, help="Complete the rows with the base model as well, in `base_prediction`.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write: .jsonl, .json, .csv, .tsv (also .gz, .zst, .bz2, .xz) or .parquet. "
    "[default: standard output, as JSON Lines]",
)
@click.option("--restart", is_flag=True, help="Begin again, although --output was interrupted.")
@click.option("--ray", is_flag=True, help="Complete rows in several processes or machines with Ray.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Workers of --ray. [default: backend.trainer.num_workers, else one per GPU or machine]",
)
def predict(
    run: Path,
    files: tuple[str, ...],
    task: str | None,
    raw: bool,
    base: bool,
    output: Path | None,
    restart: bool,
    ray: bool,
    workers: int | None,
) -> None:
    """Complete new rows with a tuned model, in the prompt template of their task.

    FILE is a file, a pattern, a folder or a data set on the Hub (hub:OWNER/NAME), as `data` of a task is.

    The output has each row's own columns, the completion in `prediction`, and in `prediction_finish_reason` whether the
    model stopped (`stop`) or reached its limit (`length`). The thought of a reasoning model is in
    `prediction_reasoning`.

    With --output, an interrupted command is resumed when it is run again.

    \b
    Example:
      alfine predict runs/quickstart new_reviews.jsonl --task sentiment
      alfine predict runs/quickstart 'reviews/*.csv.gz' --task sentiment --output predictions.parquet
    """
    quiet_libraries()
    if workers is not None and not ray:
        raise RunError("--workers applies to --ray; add --ray")
    if restart and output is None:
        raise RunError("--restart applies to an interrupted --output; add --output FILE")
    reporter = ConsoleReporter()
    predictor = RowPredictor(Run.open(run), files, task, raw, base, (workers or 0) if ray else None)
    if output is not None:
        write_predictions(predictor, output, reporter, restart)
        return
    rows = predicted_rows(predictor, predictor.check(reporter), reporter)
    # JSON escapes of characters that the terminal's encoding lacks keep each line valid JSON.
    ascii_only = not encodes_unicode(sys.stdout)
    try:
        for row in rows:
            click.echo(dump(row, ascii_only=ascii_only))
    except KeyboardInterrupt:
        reporter.warn("interrupted; without --output FILE, the same command begins again")
        sys.exit(130)
