"""`alfine compare`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pipelines.commands.arguments import RUNS
from pipelines.commands.results import prepare_sandbox_of, print_result
from pipelines.compare import compare_models
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError, RunError
from pipelines.report import write_report
from pipelines.scoring.metric import metric_from_key

DEFAULT_METRIC = "rouge"


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL")
@click.option("--prompts", type=click.Path(path_type=Path), help="Use the rows of this file instead of the test rows.")
@click.option("--task", help="The task of the rows of --prompts. [default: as for predict]")
@click.option("--raw", is_flag=True, help="Use the column `prompt` of --prompts as the prompt, without a template.")
@click.option(
    "--metric", default=DEFAULT_METRIC, show_default=True, help="The metric of raw prompts with a `reference`."
)
@click.option("--output", type=click.Path(path_type=Path), help="The folder of the report. [default: runs/A-vs-B]")
def compare(
    models: tuple[str, ...], prompts: Path | None, task: str | None, raw: bool, metric: str, output: Path | None
) -> None:
    """Compare two models on the same prompts. A model is a run, a folder, or a model id of the Hub.

    \b
    Examples:
      alfine compare runs/quickstart runs/second
      alfine compare runs/quickstart smollm2-135m-instruct --prompts new.jsonl --raw
    """
    if len(models) != 2:
        raise RunError(
            f"compare takes two models, not {len(models)}; `alfine report RUN` shows one run, `alfine runs` lists runs"
        )
    try:
        metric_from_key(metric)
    except ConfigError as error:
        raise ConfigError(f"--metric: {error}") from None
    quiet_libraries()
    folder = output or RUNS / "-vs-".join(Path(model).name for model in models)
    options = {
        "--prompts": prompts,
        "--task": task,
        "--metric": None if metric == DEFAULT_METRIC else metric,
        "--output": output,
    }
    used = [word for name, value in options.items() if value for word in (name, str(value))]
    command = shlex.join(["alfine", "compare", *models, *used, *(["--raw"] if raw else [])])
    compare_models((models[0], models[1]), prompts, task, raw, metric, folder, command, ConsoleReporter())
    prepare_sandbox_of(folder)
    print_result(folder, write_report(folder))
