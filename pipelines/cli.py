"""The command line. The only place that prints an error: one line each, exit code 2 for the user's mistakes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import __version__
from pipelines.errors import AlfineError, ConfigError, RunError

if TYPE_CHECKING:
    from pipelines.report import Analysis

RUNS = Path("runs")


class Alfine(click.Group):
    """Turns the library's errors into lines on stderr."""

    def invoke(self, context: click.Context) -> Any:
        try:
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
    from pipelines.config import load_job
    from pipelines.metrics import unresolved
    from pipelines.tasks import load_examples

    job = load_job(config, overrides)
    if problems := unresolved(job):
        raise ConfigError(problems)
    examples = load_examples(job.pipeline)
    click.echo(f"{config}: fine ({len(job.pipeline.tasks)} tasks, {len(examples):,} rows)")


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

    from pipelines.config import load_job
    from pipelines.models import context_length, find_base_model
    from pipelines.pipeline import quiet_libraries
    from pipelines.preflight import preflight, refuse_serious
    from pipelines.prepare import prepare_rows
    from pipelines.preview import show_rows
    from pipelines.prompts import PromptFormat
    from pipelines.screen import Screen
    from pipelines.tasks import load_examples

    job = load_job(config, overrides)
    examples = load_examples(job.pipeline)
    quiet_libraries()
    folder = find_base_model(job.ludwig["base_model"])
    prompts = PromptFormat.of_folder(folder, job.pipeline.chat_template)
    prepared = prepare_rows(examples, prompts)
    show_rows(prepared, prompts, Console(highlight=False), rows)
    findings = preflight(job, prepared, prompts, context_length(folder))
    for finding in findings:
        if not finding.serious:
            Screen().warn(str(finding.problem))
    refuse_serious(findings)


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
    from pipelines.config import load_job
    from pipelines.pipeline import run_job
    from pipelines.report import analyse
    from pipelines.runs import Run
    from pipelines.screen import Screen

    folder = RUNS / _run_name(name if name is not None else config.stem)
    job = load_job(config, overrides)
    command = " ".join(["alfine", "run", str(config), "--name", folder.name, *overrides])
    run_job(job, Run(folder), command, Screen())
    _summary(folder, analyse(folder))


def _run_name(name: str) -> str:
    if not name or name.startswith(".") or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise RunError(f"--name {name!r}: a run's name has letters, digits, - _ . and no slash")
    return name


@main.command()
@RUN
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", help="The task that the rows belong to, where they have no column `task`.")
@click.option("--output", type=click.Path(path_type=Path), help="Write here. [default: the terminal]")
def predict(run: Path, file: Path, task: str | None, output: Path | None) -> None:
    """Complete new rows with a tuned model; JSON Lines come out.

    \b
    Example:
      alfine predict runs/quickstart new_reviews.jsonl --task sentiment
    """
    import json

    from pipelines import pipeline
    from pipelines.runs import Run, machine_errors, write_text
    from pipelines.screen import Screen

    rows = pipeline.predict(Run.open(run), file, task, Screen())
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        click.echo(text, nl=False)
    else:
        with machine_errors(output.parent):
            write_text(output, text)


@main.command()
@RUN
def report(run: Path) -> None:
    """Write report.html, report.md and report.json of a run again, and print the table.

    \b
    Example:
      alfine report runs/quickstart
    """
    from pipelines.report import write_report
    from pipelines.runs import Run

    Run.open(run)
    _summary(run, write_report(run))


@main.command()
def models() -> None:
    """List the base models that need no hub.

    \b
    Example:
      alfine models
    """
    from pipelines.models import CONVERSION_FORMAT, EMBEDDED, cache_folder

    for model in EMBEDDED.values():
        ready = (cache_folder() / "models" / f"{model.name}-{CONVERSION_FORMAT}" / "config.json").exists()
        click.echo(f"{model.name}  {model.about}  [{'ready' if ready else 'unpacked on first use'}]")
    click.echo("base_model also takes a hub id (owner/name) or a folder with config.json and .safetensors.")


def _summary(folder: Path, analysis: Analysis) -> None:
    from rich.console import Console

    from pipelines.report.terminal import print_summary

    print_summary(analysis, Console(highlight=False))
    click.echo(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
