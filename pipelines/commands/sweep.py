"""`alfine sweep`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipelines.commands.arguments import RUNS, check_run_name, config_argument, overrides_argument
from pipelines.console.reporter import ConsoleReporter
from pipelines.report.sweep import print_sweep, write_sweep_report
from pipelines.sweep import SweepRunner, parse_variants


@click.command()
@config_argument
@overrides_argument
@click.option(
    "--strategies",
    help="The strategies to compare; + combines two. [default: none and every strategy]",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds per strategy.")
@click.option(
    "--trials",
    default=1,
    show_default=True,
    type=click.IntRange(1, 4),
    help="Hyperparameter values to try per strategy.",
)
@click.option("--name", help="The folder in runs/. [default: the config's name and -sweep]")
def sweep(
    config: Path, overrides: tuple[str, ...], strategies: str | None, seeds: int, trials: int, name: str | None
) -> None:
    """Compare forgetting strategies on the same data, seeds and budget.

    \b
    Example:
      alfine sweep ludwig_configs/quickstart.yaml --strategies none,ewc,replay+distill --seeds 3 --trials 4
    """
    folder = RUNS / check_run_name(name if name is not None else f"{config.stem}-sweep")
    variants = parse_variants(strategies)
    SweepRunner(config, overrides, folder, ConsoleReporter()).run(variants, seeds, trials)
    print_sweep(write_sweep_report(folder), Console(highlight=False))
    click.echo(f"report: {folder / 'sweep.html'}")
