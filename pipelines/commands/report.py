"""`alfine report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from pipelines.commands.arguments import run_argument
from pipelines.commands.results import prepare_sandbox_of, print_result
from pipelines.console.plain_text import count
from pipelines.errors import Problem, RunError
from pipelines.report import write_report
from pipelines.report.ratings import merge, read_ratings
from pipelines.report.results import Analysis
from pipelines.report.terminal import print_preference, print_prompt_preference
from pipelines.report.votes import is_votes_file, prompt_preference, ratings_of_test_rows, read_votes
from pipelines.storage.run_folder import Run


@click.command()
@run_argument
@click.option(
    "--ratings",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Blind ratings: downloaded from report.html, or the votes.jsonl of alfine serve.",
)
def report(run: Path, ratings: tuple[Path, ...]) -> None:
    """Show the result of a run and write its report files again.

    Prints the verdict, the gates and the scores per task; writes report.html, report.md and report.json. The exit code
    is 3 if a gate failed.

    \b
    Examples:
      alfine report runs/quickstart
      alfine report runs/quickstart --ratings anna.json --ratings ben.json
      alfine report runs/quickstart --ratings runs/quickstart/votes.jsonl
    """
    folder = Run.open(run).folder
    prepare_sandbox_of(folder)
    analysis = write_report(folder)
    if ratings:
        _print_ratings(ratings, analysis)
    print_result(folder, analysis)


def _print_ratings(paths: Sequence[Path], analysis: Analysis) -> None:
    """Prints the preference on the test rows and sample prompts, and after it that on prompts of the raters' own."""
    console = Console(highlight=False)
    files = [read_ratings(path, analysis) for path in paths if not is_votes_file(path)]
    votes = [vote for path in paths if is_votes_file(path) for vote in read_votes(path)]
    of_rows, num_other = ratings_of_test_rows(votes, analysis)
    if files or of_rows:
        print_preference(merge([*files, *of_rows]), analysis, console)
    of_prompts = prompt_preference(votes)
    if of_prompts is not None:
        print_prompt_preference(of_prompts, console)
    if num_other:
        console.print(f"{count(num_other, 'vote')} on other completions of the test rows: not counted.")
    if not (files or votes):
        raise RunError(Problem("has no votes", str(paths[0])))
