"""The verdict and the table of tasks in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.report.findings import bwt_sentence, headline, notes
from pipelines.report.results import SIGNIFICANCE
from pipelines.report.wording import BASE_AND_TUNED, count, interval, number, one_line, p_value, signed

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.report.ratings import Preference
    from pipelines.report.results import Analysis

WIDE = 100
"""Columns from which on the p value stands in the table too; the report has it in any case."""
STYLES = {"better": "green", "worse": "red", "cannot tell": "yellow", "lost": "red", "gained": "green"}


def print_runs(analyses: Sequence[Analysis], console: Console) -> None:
    """One row a run and task: what each was tuned from and to, so that runs can be told apart at a glance."""
    from rich.table import Table
    from rich.text import Text

    wide = console.width >= WIDE
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "task", *(["metric"] if wide else [])):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "base", "tuned", "change", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    before_and_after = [analysis for analysis in analyses if analysis.sides == BASE_AND_TUNED]
    for analysis in sorted(before_and_after, key=lambda analysis: analysis.manifest.name):
        name = one_line(analysis.manifest.name, 40)
        for task in analysis.tasks.values():
            table.add_row(
                Text(name, style="bold"),
                Text(one_line(task.name, 40)),
                *([Text(one_line(task.title, 40))] if wide else []),
                f"{task.n:,}",
                number(task.base, task.unit),
                number(task.tuned, task.unit),
                signed(task.delta, task.unit),
                interval(task.ci95, task.unit),
                Text(task.verdict, style=STYLES[task.verdict]),
            )
            name = ""
    console.print(table)


def print_preference(preference: Preference, analysis: Analysis, console: Console) -> None:
    """What the blind raters preferred, and how far they agree."""
    from rich.text import Text

    one, two = analysis.sides
    result = preference.comparison
    share = f"{signed(result.delta)} points for {two if result.delta >= 0 else one}"
    told = result.p_value < SIGNIFICANCE and not result.ci95[0] <= 0 <= result.ci95[1]
    verdict = f"prefer {two if result.delta > 0 else one}" if told else "show no clear preference"
    counts = ", ".join(f"{choice} {number_of:,}" for choice, number_of in preference.counts.items())
    console.print()
    console.print(Text(one_line(f"{count(len(preference.raters), 'rater')} {verdict}.", 200), style="bold"))
    console.print(Text(f"{count(result.n, 'item')}: {counts}. On balance {share} (95 % interval {interval(result.ci95)})."))
    if preference.alpha is not None:
        items = count(preference.shared, "item")
        console.print(Text(f"Agreement on {items} rated more than once: Krippendorff's alpha {preference.alpha:.2f}."))


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print the headline, one row per task, and what to keep in mind. Names and answers are never markup."""
    from rich.table import Table
    from rich.text import Text

    wide = console.width >= WIDE
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=wide)
    base, tuned = (one_line(side, 24 if wide else 12) for side in analysis.sides)
    for heading in ("rows", base, tuned, "change", "95 % interval", *(["p (Holm)"] if wide else [])):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for task in analysis.tasks.values():
        table.add_row(
            Text(one_line(task.name, 40), style="bold"),
            Text(one_line(task.title, 40)),
            f"{task.n:,}",
            number(task.base, task.unit),
            number(task.tuned, task.unit),
            signed(task.delta, task.unit),
            interval(task.ci95, task.unit),
            *([p_value(task.p_holm)] if wide else []),
            Text(task.verdict, style=STYLES[task.verdict]),
        )
    console.print()
    console.print(Text(one_line(headline(analysis), 500), style="bold"))
    for gate in analysis.failed_first:
        word, style = ("passed", "green") if gate.passed else ("FAILED", "bold red")
        console.print(Text.assemble((f"{word} ", style), one_line(f"{gate.name}: {gate.sentence}", 500)))
    console.print()
    console.print(table)
    _print_guards(analysis, console)
    for task in analysis.tasks.values():
        for note in notes(task):
            console.print(Text.assemble((f"{one_line(task.name, 40)}: ", "bold"), one_line(note, 500)))
    console.print()


def _print_guards(analysis: Analysis, console: Console) -> None:
    """What was kept: one row per guard, and the line that says it in words."""
    from rich.table import Table
    from rich.text import Text

    if not analysis.guards:
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("guard", "measure"):
        table.add_column(heading, overflow="fold")
    base, tuned = (one_line(side, 12) for side in analysis.sides)
    for heading in ("items", base, tuned, "change", "95 % interval"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for guard in analysis.guards.values():
        table.add_row(
            Text(one_line(guard.name, 40), style="bold"),
            Text(one_line(guard.title, 40)),
            f"{guard.n:,}",
            number(guard.base, guard.unit),
            number(guard.tuned, guard.unit),
            signed(guard.delta, guard.unit),
            interval(guard.ci95, guard.unit),
            Text(guard.verdict, style=STYLES.get(guard.verdict, "")),
        )
    console.print()
    console.print(table)
    console.print(Text(one_line(analysis.learned_and_lost, 500), style="bold"))
    if analysis.bwt is not None:
        console.print(Text(one_line(bwt_sentence(analysis.bwt), 500)))
    for guard in analysis.guards.values():
        for flag in guard.flags:
            console.print(Text.assemble((f"{one_line(guard.name, 40)}: ", "bold"), one_line(flag, 500)))
