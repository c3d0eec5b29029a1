"""The columns of the result tables, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.report.few_shot import few_shot_name
from pipelines.report.formatting import heading, interval, number, p_value, signed, with_unit
from pipelines.report.results import TaskResult
from pipelines.report.retention import RetentionResult
from pipelines.report.tables import Column
from pipelines.scoring.metric import Unit


@dataclass(frozen=True, kw_only=True)
class ResultColumn[R](Column):
    """A column and the text of its cells."""

    key: str
    """The name of the column in code and in the page's markup."""
    text: Callable[[R], str]


def task_columns(models: tuple[str, str], tasks: Iterable[TaskResult] = ()) -> list[ResultColumn[TaskResult]]:
    """The columns of the table of tasks. The number of reasoning tokens, and the base with examples in its prompt, are
    among them if a task of `tasks` has any."""
    tasks = list(tasks)
    reasoning = ResultColumn[TaskResult](
        key="reasoning", heading="Reasoning tokens", optional=True, text=lambda task: _reasoning_tokens(task)
    )
    return [
        ResultColumn(key="name", heading="Task", words=True, text=lambda task: task.name),
        ResultColumn(key="title", heading="Metric", words=True, text=lambda task: with_unit(task.title, task.unit)),
        ResultColumn(key="n", heading="Rows", text=lambda task: f"{task.comparison.n:,}"),
        *_with_few_shot(_comparison_columns(models), tasks),
        ResultColumn(key="p_holm", heading="p (Holm)", optional=True, text=lambda task: p_value(task.p_holm)),
        ResultColumn(
            key="wins",
            heading="Better / worse / same",
            optional=True,
            text=lambda task: f"{task.num_better:,} / {task.num_worse:,} / {task.num_same:,}",
        ),
        ResultColumn(
            key="reference_nll",
            heading="Reference NLL",
            optional=True,
            text=lambda task: _nll(task),
        ),
        *([reasoning] if any(task.reasoning for task in tasks) else []),
        ResultColumn(key="verdict", heading="Verdict", words=True, text=lambda task: task.verdict),
    ]


def _with_few_shot(
    columns: list[ResultColumn[TaskResult | RetentionResult]], tasks: list[TaskResult]
) -> list[ResultColumn[TaskResult]]:
    """The columns of a comparison, with that of the base with examples after the base, and the gain beyond them."""
    if not any(task.few_shot for task in tasks):
        return list(columns)
    name = few_shot_name(tasks)
    mean = ResultColumn[TaskResult](key="few_shot", heading=name, text=_few_shot_mean)
    beyond = ResultColumn[TaskResult](
        key="beyond",
        heading=f"Beyond {name.removeprefix('Base + ')} (95 % CI)",
        optional=True,
        text=_beyond_few_shot,
    )
    return [columns[0], mean, *columns[1:], beyond]


def retention_columns(models: tuple[str, str]) -> list[ResultColumn[RetentionResult]]:
    """The columns of the table of retention evals."""
    return [
        ResultColumn(key="name", heading="Eval", words=True, text=lambda result: result.name),
        ResultColumn(
            key="title", heading="Measure", words=True, text=lambda result: with_unit(result.title, result.unit)
        ),
        ResultColumn(key="n", heading="Items", text=lambda result: f"{result.comparison.n:,}"),
        *_comparison_columns(models),
        ResultColumn(
            key="losses",
            heading="Worse / better",
            optional=True,
            text=lambda result: f"{result.num_worse:,} / {result.num_better:,}",
        ),
        ResultColumn(key="verdict", heading="Verdict", words=True, text=lambda result: result.verdict or ""),
    ]


def _comparison_columns(models: tuple[str, str]) -> list[ResultColumn[TaskResult | RetentionResult]]:
    """The means of both models, the change and its interval."""
    return [
        ResultColumn(
            key="base", heading=heading(models[0]), text=lambda result: number(result.comparison.base, result.unit)
        ),
        ResultColumn(
            key="tuned", heading=heading(models[1]), text=lambda result: number(result.comparison.tuned, result.unit)
        ),
        ResultColumn(key="delta", heading="Change", text=lambda result: signed(result.comparison.delta, result.unit)),
        ResultColumn(key="ci95", heading="95 % CI", text=lambda result: interval(result.comparison.ci95, result.unit)),
    ]


def _few_shot_mean(task: TaskResult) -> str:
    return "" if task.few_shot is None else number(task.few_shot.comparison.base, task.unit)


def _beyond_few_shot(task: TaskResult) -> str:
    if task.few_shot is None:
        return ""
    comparison = task.few_shot.comparison
    return f"{signed(comparison.delta, task.unit)} ({interval(comparison.ci95, task.unit)})"


def _nll(task: TaskResult) -> str:
    if task.reference_nll is None:
        return ""
    nll, unit = task.reference_nll, Unit.NATS_PER_TOKEN
    return f"{number(nll.base, unit)} → {number(nll.tuned, unit)}"


def _reasoning_tokens(task: TaskResult) -> str:
    """The mean number of reasoning tokens per completion of both models."""
    if task.reasoning is None:
        return ""
    return f"{task.reasoning.base.mean_tokens:,.0f} → {task.reasoning.tuned.mean_tokens:,.0f}"
