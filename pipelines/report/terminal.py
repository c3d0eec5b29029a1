"""The verdict and the table of tasks in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.report.formatting import BASE_AND_TUNED, count, interval, number, one_line, p_value, signed
from pipelines.report.results import SIGNIFICANCE
from pipelines.report.summaries import bwt_sentence, headline, notes
from pipelines.report.tables import LONGEST, Column, cell, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.report.ratings import Preference
    from pipelines.report.results import Analysis, TaskResult
    from pipelines.report.retention import GuardResult

STYLES = {"better": "green", "worse": "red", "cannot tell": "yellow", "lost": "red", "gained": "green"}


def print_runs(analyses: Sequence[Analysis], console: Console) -> None:
    """One row a run and task: what each was tuned from and to, so that runs can be compared at a glance."""
    from rich.text import Text

    columns = [Column("run", words=True), Column("task", words=True), Column("metric", words=True, optional=True)]
    columns += [Column(heading) for heading in ("rows", "base", "tuned", "change", "95 % interval")]
    rows: list[list[str | Text]] = []
    before_and_after = [analysis for analysis in analyses if analysis.sides == BASE_AND_TUNED]
    for analysis in sorted(before_and_after, key=lambda analysis: analysis.manifest.name):
        name = analysis.manifest.name
        for task in analysis.tasks.values():
            verdict = Text(task.verdict, style=STYLES[task.verdict])
            rows.append([cell(name, "bold"), cell(task.name), cell(task.title), *_numbers(task), verdict])
            name = ""
    print_table([*columns, Column("verdict", words=True)], rows, console)


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
    console.print(
        Text(f"{count(result.n, 'item')}: {counts}. On balance {share} (95 % interval {interval(result.ci95)}).")
    )
    if preference.alpha is not None:
        items = count(preference.shared, "item")
        console.print(Text(f"Agreement on {items} rated more than once: Krippendorff's alpha {preference.alpha:.2f}."))


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print the headline, one row per task, and what to keep in mind. Names and answers are never markup."""
    from rich.text import Text

    columns = [Column("task", words=True), Column("metric", words=True)]
    columns += [Column(heading) for heading in ("rows", *_sides(analysis), "change", "95 % interval")]
    columns += [Column("p (Holm)", optional=True), Column("verdict", words=True)]
    rows: list[list[str | Text]] = [
        [
            cell(task.name, "bold"),
            cell(task.title),
            *_numbers(task),
            p_value(task.p_holm),
            Text(task.verdict, style=STYLES[task.verdict]),
        ]
        for task in analysis.tasks.values()
    ]
    console.print()
    console.print(Text(one_line(headline(analysis), 500), style="bold"))
    for gate in analysis.failed_first:
        word, style = ("passed", "green") if gate.passed else ("FAILED", "bold red")
        console.print(Text.assemble((f"{word} ", style), one_line(f"{gate.name}: {gate.sentence}", 500)))
    console.print()
    if rows:
        print_table(columns, rows, console)
    _print_guards(analysis, console)
    for task in analysis.tasks.values():
        for note in notes(task):
            console.print(Text.assemble((f"{one_line(task.name, LONGEST)}: ", "bold"), one_line(note, 500)))
    console.print()


def _print_guards(analysis: Analysis, console: Console) -> None:
    """What was kept: one row per guard, and the line that says it in words."""
    from rich.text import Text

    if not analysis.guards:
        return
    columns = [Column("guard", words=True), Column("measure", words=True)]
    columns += [Column(heading) for heading in ("items", *_sides(analysis), "change", "95 % interval")]
    rows: list[list[str | Text]] = [
        [
            cell(guard.name, "bold"),
            cell(guard.title),
            *_numbers(guard),
            Text(guard.verdict, style=STYLES.get(guard.verdict, "")),
        ]
        for guard in analysis.guards.values()
    ]
    console.print()
    print_table([*columns, Column("verdict", words=True)], rows, console)
    console.print(Text(one_line(analysis.learned_and_lost, 500), style="bold"))
    if analysis.bwt is not None:
        console.print(Text(one_line(bwt_sentence(analysis.bwt), 500)))
    for guard in analysis.guards.values():
        for flag in guard.flags:
            console.print(Text.assemble((f"{one_line(guard.name, LONGEST)}: ", "bold"), one_line(flag, 500)))


def _sides(analysis: Analysis) -> list[str]:
    return [one_line(side, 12) for side in analysis.sides]


def _numbers(found: TaskResult | GuardResult) -> list[str]:
    """How many, both sides, the change and its interval."""
    unit = found.unit
    values = (
        number(found.base, unit),
        number(found.tuned, unit),
        signed(found.delta, unit),
        interval(found.ci95, unit),
    )
    return [f"{found.n:,}", *values]
