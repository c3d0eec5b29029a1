"""The command line. The only place that prints an error: one line each, exit code 2 for the user's mistakes."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import click

from pipelines import __version__
from pipelines.console.activity import HEARTBEAT, Unfailing, draws
from pipelines.console.plain_text import make_readable, speaks_unicode
from pipelines.errors import AlfineError, ConfigError, RunError
from pipelines.storage.cache import ensure_home

if TYPE_CHECKING:
    from pipelines.report import Analysis
    from pipelines.report.examples import Wanted

RUNS = Path("runs")
DEFAULT_METRIC = "rouge"
GATE_FAILED = 3
"""Exit code of `run`, `compare` and `report` where the YAML demands more than was reached, so that CI can use it."""


class Alfine(click.Group):
    """Turns the library's errors into lines on stderr."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            make_readable(stream)
        return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        # A cluster or a shutdown ends a process so; what is to be put away is put away as on Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Over all of a command, so that nothing in it is silent for long where no terminal shows that it lives.
        lines = contextlib.nullcontext() if draws(sys.stderr) else HEARTBEAT.beating(Unfailing(sys.stderr).line)
        try:
            ensure_home()
            with lines:
                return super().invoke(context)
        except AlfineError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nstopped; the same command goes on from here", err=True)
            context.exit(130)


@click.group(cls=Alfine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alfine")
def main() -> None:
    """Fine-tune a language model from one YAML file, and see what it learned.

    \b
    Example:
      alfine run ludwig_configs/quickstart.yaml
    """


CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
RUN = click.argument("run", type=click.Path(path_type=Path))


@main.command()
@CONFIG
@OVERRIDES
def check(config: Path, overrides: tuple[str, ...]) -> None:
    """Check a YAML file and the rows that it names: every error at once, nothing is trained.

    \b
    Example:
      alfine check ludwig_configs/quickstart.yaml
    """
    from pipelines.checks.job import check_job
    from pipelines.config.job import load_job

    job = load_job(config, overrides)
    result = check_job(job)
    for problem in result.warnings:
        click.echo(f"warning: {problem}", err=True)
    click.echo(f"{config}: fine ({len(job.pipeline.tasks)} tasks, {result.num_rows:,} rows)")


@main.command()
@CONFIG
@OVERRIDES
@click.option("--rows", default=2, show_default=True, help="Rows to show of each task.")
def preview(config: Path, overrides: tuple[str, ...], rows: int) -> None:
    """Show rows as the model will see them, what is trained in green, and what preflight finds.

    \b
    Example:
      alfine preview ludwig_configs/quickstart.yaml --rows 1
    """
    from rich.console import Console

    from pipelines.checks.dataset import DatasetChecks
    from pipelines.checks.files import check_data_files
    from pipelines.checks.findings import raise_on_errors
    from pipelines.commands.preview import show_rows, show_schedule
    from pipelines.config.job import load_job
    from pipelines.console.reporter import ConsoleReporter, quiet_libraries
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples
    from pipelines.modeling.base_models import context_length, find_base_model, locate_model_errors
    from pipelines.scoring.sandbox import prepare_sandbox

    job = load_job(config, overrides)
    check_data_files(job)
    examples = list(load_examples(job.pipeline))
    quiet_libraries()
    reporter = ConsoleReporter()
    with reporter.working(f"Base model {job.base_model}"), locate_model_errors(job, "base_model"):
        folder = find_base_model(job.base_model)
    prepare_sandbox({task.metric for task in job.pipeline.tasks.values()}, reporter.working)
    with reporter.working("Preparing rows"):
        prompts = PromptFormat.for_job(job, folder)
        checks = DatasetChecks(job, prompts, context_length(folder))
        prepared = list(checks.tap(tokenize_examples(examples, prompts)))
    console = Console(highlight=False)
    show_rows(prepared, prompts, console, rows)
    show_schedule(job.trainer, sum(row.example.split == "train" for row in prepared), console)
    findings = checks.findings()
    for finding in findings:
        if finding.severity == "warning":
            reporter.warn(str(finding.problem))
    raise_on_errors(findings)


@main.command()
@CONFIG
@OVERRIDES
@click.option("--name", help="The run's folder in runs/. [default: the config's name]")
def run(config: Path, overrides: tuple[str, ...], name: str | None) -> None:
    """Fine-tune, and compare base and tuned. Cut off, the same command goes on.

    \b
    Example:
      alfine run ludwig_configs/quickstart.yaml --name first trainer.epochs=2
    """
    from pipelines.config.job import load_job
    from pipelines.console.reporter import ConsoleReporter
    from pipelines.report import analyse
    from pipelines.run import run_job
    from pipelines.storage.run_folder import Run

    folder = RUNS / _run_name(name if name is not None else config.stem)
    job = load_job(config, overrides)
    command = shlex.join(["alfine", "run", str(config), "--name", folder.name, *overrides])
    run_job(job, Run(folder), command, ConsoleReporter())
    _summary(folder, analyse(folder))


def _run_name(name: str) -> str:
    if not name:
        raise RunError("--name is empty; write one, as in --name first")
    if name.startswith("."):
        raise RunError(
            f"--name {name!r}: a run's name does not begin with a dot; write --name {name.lstrip('.') or 'first'}"
        )
    # Vowel signs of Hindi, Thai and others are no letters, but parts of them.
    if not all(letter.isalnum() or letter in "-_." or category(letter)[0] == "M" for letter in name):
        raise RunError(f"--name {name!r}: a run's name has letters, digits, - _ . and no slash")
    return name


@main.command()
@RUN
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", help="The task that the rows belong to. [default: the run's only one, or the column `task`]")
@click.option("--raw", is_flag=True, help="Ask the column `prompt` as it stands, without a task's template.")
@click.option("--output", type=click.Path(path_type=Path), help="Write here. [default: the terminal]")
def predict(run: Path, file: Path, task: str | None, raw: bool, output: Path | None) -> None:
    """Complete new rows with a tuned model, in the template of their task. JSON Lines come out: each row's own columns, the
    answer in `prediction`, and in `prediction_finish_reason` "stop", or "length" where it was cut at max_new_tokens.

    \b
    Example:
      alfine predict runs/quickstart new_reviews.jsonl --task sentiment
    """
    from pipelines.console.reporter import ConsoleReporter, quiet_libraries
    from pipelines.predict import check_output, write_predictions
    from pipelines.predict import predict as complete_rows
    from pipelines.storage.run_folder import Run
    from pipelines.storage.strict_json import dump

    quiet_libraries()
    if output is not None:
        check_output(output, file)
    reporter = ConsoleReporter()
    rows = complete_rows(Run.open(run), file, task, reporter, raw)
    if output is not None:
        write_predictions(rows, output, reporter)
        return
    # In a terminal's own encoding what it lacks is escaped, so that each line is still JSON.
    escaped = not speaks_unicode(sys.stdout)
    for row in rows:
        click.echo(dump(row, ascii_only=escaped))


@main.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="Two models: ask them these rows instead of the test rows."
)
@click.option("--task", help="Two models: the task that the rows of --prompts belong to, as for predict.")
@click.option("--raw", is_flag=True, help="Two models: ask the column `prompt` of --prompts as it stands.")
@click.option(
    "--metric", default=DEFAULT_METRIC, show_default=True, help="Two models: for raw prompts with a `reference`."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Two models: the folder of the report. [default: runs/A-vs-B]"
)
@click.option("--ratings", multiple=True, type=click.Path(path_type=Path), help="One run: blind ratings from its page.")
def compare(
    runs: tuple[str, ...],
    prompts: Path | None,
    task: str | None,
    raw: bool,
    metric: str,
    output: Path | None,
    ratings: tuple[Path, ...],
) -> None:
    """One run: its verdict and gates; exit code 3 where a gate failed. Two models (runs, folders or hub ids):
    both on the same prompts. More runs: a table.

    \b
    Examples:
      alfine compare runs/quickstart
      alfine compare runs/quickstart --ratings anna.json --ratings ben.json
      alfine compare runs/quickstart runs/second
      alfine compare runs/quickstart smollm2-135m-instruct --prompts new.jsonl --raw
      alfine compare runs/*
    """
    from rich.console import Console

    from pipelines.report import analyse
    from pipelines.report.terminal import print_preference, print_runs

    if len(runs) == 2:
        _refuse({"--ratings": ratings}, "a single run")
        _head_to_head((runs[0], runs[1]), prompts, task, raw, metric, output)
        return
    _refuse({"--prompts": prompts, "--task": task, "--raw": raw, "--output": output}, "two models to compare")
    console = Console(highlight=False)
    if len(runs) > 2:
        _refuse({"--ratings": ratings}, "a single run")
        folders = [_run_folder(run) for run in runs]
        _prepare_sandbox(*folders)
        print_runs([analyse(folder) for folder in folders], console)
        return
    folder = _run_folder(runs[0])
    _prepare_sandbox(folder)
    analysis = analyse(folder)
    if ratings:
        from pipelines.report.ratings import merge, read_ratings

        print_preference(merge([read_ratings(path, analysis) for path in ratings]), analysis, console)
    _summary(folder, analysis)


def _head_to_head(
    places: tuple[str, str], prompts: Path | None, task: str | None, raw: bool, metric: str, output: Path | None
) -> None:
    from pipelines.compare import compare_models
    from pipelines.console.reporter import ConsoleReporter, quiet_libraries
    from pipelines.report import write_report
    from pipelines.scoring.metric import resolve

    try:
        resolve(metric)
    except ConfigError as error:
        raise ConfigError(f"--metric: {error}") from None
    quiet_libraries()
    folder = output or RUNS / "-vs-".join(Path(place).name for place in places)
    options = {
        "--prompts": prompts,
        "--task": task,
        "--metric": None if metric == DEFAULT_METRIC else metric,
        "--output": output,
    }
    given = [word for name, value in options.items() if value for word in (name, str(value))]
    command = shlex.join(["alfine", "compare", *places, *given, *(["--raw"] if raw else [])])
    compare_models(places, prompts, task, raw, metric, folder, command, ConsoleReporter())
    _prepare_sandbox(folder)
    _summary(folder, write_report(folder))


def _refuse(options: dict[str, object], what_for: str) -> None:
    for name, value in options.items():
        if value:
            raise RunError(f"{name} goes with {what_for}; leave it out, or name {what_for}")


def _prepare_sandbox(*folders: Path) -> None:
    """What the runs' unit tests need, where they have any, with a line while it is compiled."""
    from pipelines.console.reporter import ConsoleReporter
    from pipelines.report.run_files import read_run
    from pipelines.scoring.sandbox import prepare_sandbox

    prepare_sandbox(
        {metric for folder in folders for metric in read_run(folder).metrics.values()}, ConsoleReporter().working
    )


def _run_folder(place: str) -> Path:
    from pipelines.storage.run_folder import Run

    return Run.open(Path(place)).folder


@main.command()
@RUN
@click.option("--task", help="The examples of this task alone.")
@click.option("--worse", "wanted", flag_value="worse", help="Those alone that got worse.")
@click.option("--better", "wanted", flag_value="better", help="Those alone that got better.")
@click.option("--all", "wanted", flag_value="all", default=True, help="All, the worst first. [default]")
def show(run: Path, task: str | None, wanted: Wanted) -> None:
    """Page through the examples of a run, both answers side by side.

    \b
    Example:
      alfine show runs/quickstart --task code --worse
    """
    from rich.console import Console

    from pipelines.report import analyse
    from pipelines.report.examples import chosen
    from pipelines.report.examples import show as show_examples
    from pipelines.storage.run_folder import Run

    Run.open(run)
    _prepare_sandbox(run)
    analysis = analyse(run)
    if task is not None and task not in analysis.tasks:
        raise RunError(f"{run} has no task {task!r}; it has {', '.join(analysis.tasks)}")
    examples = chosen(analysis, task, wanted)
    if not examples:
        click.echo("no example fits")
    show_examples(analysis, examples, Console(highlight=False))


@main.command()
@RUN
def report(run: Path) -> None:
    """Write report.html, report.md and report.json of a run again, and print the table.

    \b
    Example:
      alfine report runs/quickstart
    """
    from pipelines.report import write_report
    from pipelines.storage.run_folder import Run

    Run.open(run)
    _prepare_sandbox(run)
    _summary(run, write_report(run))


@main.command()
@CONFIG
@OVERRIDES
@click.option(
    "--strategies",
    default="none,ewc,si,replay,distill,replay+distill,l2sp,interpolate",
    show_default=True,
    help="The arms.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds of each arm.")
@click.option(
    "--tune", default=1, show_default=True, type=click.IntRange(1, 4), help="Settings that each arm's knob may try."
)
@click.option("--name", help="The folder in runs/. [default: the config's name and -bakeoff]")
def bakeoff(config: Path, overrides: tuple[str, ...], strategies: str, seeds: int, tune: int, name: str | None) -> None:
    """Strategies against forgetting on one job: the same data, steps, seeds and tries; what each gained and forgot.

    \b
    Example:
      alfine bakeoff ludwig_configs/quickstart.yaml --strategies none,ewc,replay+distill --seeds 3 --tune 4
    """
    from rich.console import Console

    from pipelines.console.reporter import ConsoleReporter
    from pipelines.report.sweep import print_bake_off, write_bake_off
    from pipelines.sweep import bake_off, parse_arms

    folder = RUNS / _run_name(name if name is not None else f"{config.stem}-bakeoff")
    bake_off(config, overrides, parse_arms(strategies), seeds, tune, folder, ConsoleReporter())
    print_bake_off(write_bake_off(folder), Console(highlight=False))
    click.echo(f"report: {folder / 'bakeoff.html'}")


@main.command()
def models() -> None:
    """List the base models that need no hub.

    \b
    Example:
      alfine models
    """
    from pipelines.modeling.base_models import CONVERSION_FORMAT, EMBEDDED, cache_folder

    for model in EMBEDDED.values():
        ready = (cache_folder() / "models" / f"{model.name}-{CONVERSION_FORMAT}" / "config.json").exists()
        click.echo(f"{model.name}  {model.about}  [{'ready' if ready else 'unpacked on first use'}]")
    click.echo("base_model also takes a hub id (owner/name) or a folder with config.json and .safetensors.")


def _summary(folder: Path, analysis: Analysis) -> None:
    from rich.console import Console

    from pipelines.report.terminal import print_summary

    print_summary(analysis, Console(highlight=False))
    click.echo(f"report: {folder / 'report.html'}")
    if any(not gate.passed for gate in analysis.gates):
        sys.exit(GATE_FAILED)


if __name__ == "__main__":
    sys.exit(main())
