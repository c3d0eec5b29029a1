"""The results of runs in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from pipelines.report.columns import ResultColumn, retention_columns, task_columns
from pipelines.report.few_shot import worth_of_tuning
from pipelines.report.formatting import BASE_AND_TUNED, count, interval, one_line, signed
from pipelines.report.ratings import Preference
from pipelines.report.results import Analysis
from pipelines.report.summaries import backward_transfer_summary, headline, retention_summary, task_caveats
from pipelines.report.tables import MAX_NAME_CELLS, Column, cell, print_table
from pipelines.report.votes import PromptPreference
from pipelines.scoring.statistics import Comparison, is_significant

STYLES = {"better": "green", "worse": "red", "inconclusive": "yellow", "regressed": "red", "improved": "green"}
MAX_MODEL_NAME = 12
"""Characters of the name of a model in the heading of a column."""
MAX_SENTENCE = 500
"""Characters of a sentence."""


def print_runs(analyses: Sequence[Analysis], console: Console) -> None:
    """Prints one row per run and task. Comparisons of two models are left out."""
    columns = [column for column in task_columns(BASE_AND_TUNED) if not column.optional]
    rows: list[list[str | Text]] = []
    runs = [analysis for analysis in analyses if analysis.models == BASE_AND_TUNED]
    for analysis in sorted(runs, key=lambda analysis: analysis.manifest.name):
        name = analysis.manifest.name
        for row in _rows(columns, analysis.tasks.values()):
            rows.append([cell(name, "bold"), *row])
            name = ""
    print_table([Column("Run", words=True), *columns], rows, console)


def print_preference(preference: Preference, analysis: Analysis, console: Console) -> None:
    """Prints which model the blind raters preferred, and their agreement."""
    result = preference.comparison
    verdict, share = _preferred(result, analysis.models)
    choices = ", ".join(f"{choice} {frequency:,}" for choice, frequency in preference.counts.items())
    console.print()
    console.print(Text(one_line(f"{count(len(preference.raters), 'rater')} {verdict}.", 200), style="bold"))
    console.print(Text(f"{count(result.n, 'item')}: {choices}. On balance {share} (95 % CI {interval(result.ci95)})."))
    if preference.alpha is not None:
        items = count(preference.shared, "item")
        console.print(Text(f"Agreement on {items} rated more than once: Krippendorff's alpha {preference.alpha:.2f}."))


def print_prompt_preference(preference: PromptPreference, console: Console) -> None:
    """Prints which model was preferred on prompts that the raters wrote, which says nothing about the test rows."""
    result = preference.comparison
    verdict, share = _preferred(result, BASE_AND_TUNED)
    raters, prompts = count(len(preference.raters), "rater"), count(result.n, "prompt")
    choices = ", ".join(f"{choice} {frequency:,}" for choice, frequency in preference.counts.items())
    sampled = f" {count(preference.num_sampled, 'vote')} on sampled answers." if preference.num_sampled else ""
    console.print()
    console.print(Text(one_line(f"On prompts of their own, {raters} {verdict}.", 200), style="bold"))
    console.print(Text(f"{prompts}: {choices}. On balance {share} (95 % CI {interval(result.ci95)}).{sampled}"))
    console.print(Text("The raters chose these prompts, so the result is about them and not about the test rows."))


def _preferred(result: Comparison, models: tuple[str, str]) -> tuple[str, str]:
    """What raters do, such as "prefer tuned", and the mean in words."""
    first, second = models
    preferred = second if result.delta > 0 else first
    significant = is_significant(result.p_value, result.ci95)
    verdict = f"prefer {preferred}" if significant else "show no significant preference"
    return verdict, f"{signed(result.delta)} points for {second if result.delta >= 0 else first}"


def print_summary(analysis: Analysis, console: Console) -> None:
    """Prints the headline, the gates, a row per task and retention eval, and the caveats. No text acts as markup."""
    models = _short_names(analysis)
    console.print()
    console.print(Text(one_line(headline(analysis), MAX_SENTENCE), style="bold"))
    for sentence in worth_of_tuning(analysis):
        console.print(Text(one_line(sentence, MAX_SENTENCE)))
    for gate in analysis.gates_failed_first:
        word, style = ("passed", "green") if gate.passed else ("FAILED", "bold red")
        console.print(Text.assemble((f"{word} ", style), one_line(f"{gate.name}: {gate.summary}", MAX_SENTENCE)))
    console.print()
    if analysis.tasks:
        task_table = task_columns(models, analysis.tasks.values())
        print_table(task_table, _rows(task_table, analysis.tasks.values()), console)
    _print_retention(analysis, models, console)
    for task in analysis.tasks.values():
        _print_caveats(task.name, task_caveats(task), console)
    console.print()


def _print_retention(analysis: Analysis, models: tuple[str, str], console: Console) -> None:
    if not analysis.retention:
        return
    columns = retention_columns(models)
    console.print()
    print_table(columns, _rows(columns, analysis.retention.values()), console)
    console.print(Text(one_line(retention_summary(analysis), MAX_SENTENCE), style="bold"))
    if analysis.backward_transfer is not None:
        console.print(Text(one_line(backward_transfer_summary(analysis.backward_transfer), MAX_SENTENCE)))
    for result in analysis.retention.values():
        _print_caveats(result.name, result.caveats, console)


def _print_caveats(name: str, caveats: Sequence[str], console: Console) -> None:
    for caveat in caveats:
        heading = (f"{one_line(name, MAX_NAME_CELLS)}: ", "bold")
        console.print(Text.assemble(heading, one_line(caveat, MAX_SENTENCE)))


def _rows[R](columns: Sequence[ResultColumn[R]], results: Iterable[R]) -> list[list[str | Text]]:
    return [[_cell(column, column.text(result)) for column in columns] for result in results]


def _cell[R](column: ResultColumn[R], text: str) -> str | Text:
    if column.key == "name":
        return cell(text, "bold")
    if column.key == "verdict":
        return Text(text, style=STYLES.get(text, ""))
    return cell(text) if column.words else text


def _short_names(analysis: Analysis) -> tuple[str, str]:
    first, second = (one_line(model, MAX_MODEL_NAME) for model in analysis.models)
    return first, second
