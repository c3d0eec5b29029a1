"""The examples of a run in the terminal: both completions side by side, the largest regressions first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Literal, NamedTuple

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipelines.report.few_shot import few_shot_name
from pipelines.report.formatting import NOTHING, heading, no_answer, printable, score
from pipelines.report.results import Analysis, ExampleComparison

MAX_LINES = 30
"""Lines of one text. The whole text is in report.json."""
MAX_CHARACTERS = 3000
"""Characters of one text."""

MAX_THOUGHT_LINES, MAX_THOUGHT_CHARACTERS = 5, 400
"""Lines and characters of the reasoning before an answer."""

ChangeFilter = Literal["all", "better", "worse", "same"]
STYLES = {"better": "green", "worse": "red", "same": "dim", "unscored": "yellow"}


def select_examples(analysis: Analysis, task: str | None, change: ChangeFilter) -> list[ExampleComparison]:
    """The examples of one task, or of all, with this change; the largest regressions first."""
    return [
        example
        for example in analysis.examples_by_regression
        if (task is None or example.task == task) and change in ("all", example.change)
    ]


def print_examples(analysis: Analysis, examples: Sequence[ExampleComparison], console: Console) -> None:
    """Prints through a pager if the output is a terminal, else at once."""
    if console.is_terminal and console.file.isatty():  # rich treats a pipe as a terminal if FORCE_COLOR is set
        os.environ.setdefault("LESS", "-R")  # less would show colors as escape codes
        with console.pager(styles=True):
            for part in _parts(analysis, examples):
                console.print(part)
    else:
        for part in _parts(analysis, examples):
            console.print(part)


def _parts(analysis: Analysis, examples: Sequence[ExampleComparison]) -> Iterator[RenderableType]:
    for example in examples:
        task = analysis.tasks[example.task]
        title = f"{example.task}, {example.row_title}: {example.change}"
        yield Rule(Text(title, style=STYLES[example.change]), align="left", style="dim")
        yield Text(_excerpt(example.prompt))
        yield Padding(Text(_excerpt(example.reference), style="dim"), (0, 0, 0, 2))
        answers = _answers(example, analysis)
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        for answer in answers:
            name = f"{answer.model} ({score(answer.score, task.unit, task.metric.binary)})"
            table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
        if any(answer.reasoning for answer in answers):
            thoughts = [_thought(answer.reasoning) if answer.reasoning else "" for answer in answers]
            table.add_row(*(Text(thought, style="dim italic") for thought in thoughts))
        table.add_row(*(Text(_answer(answer.text, answer.reasoning, answer.reasoning_cut)) for answer in answers))
        if any(answer.detail for answer in answers):
            table.add_row(*(Text(_excerpt(answer.detail) if answer.detail else "", style="dim") for answer in answers))
        yield table
        yield Text()


class _ModelAnswer(NamedTuple):
    """An answer with the heading of its column."""

    model: str
    text: str
    score: float | None
    detail: str
    reasoning: str | None
    reasoning_cut: bool


def _answers(example: ExampleComparison, analysis: Analysis) -> list[_ModelAnswer]:
    """The answers to an example: of the base, of the base with examples in its prompt if there is one, of the tuned
    model."""
    answers = [
        _ModelAnswer(
            heading(analysis.models[0]),
            example.base,
            example.base_score,
            example.base_detail,
            example.base_reasoning,
            example.base_reasoning_cut,
        ),
        _ModelAnswer(
            heading(analysis.models[1]),
            example.tuned,
            example.tuned_score,
            example.tuned_detail,
            example.tuned_reasoning,
            example.tuned_reasoning_cut,
        ),
    ]
    if (few_shot := example.few_shot) is not None:
        name = few_shot_name([analysis.tasks[example.task]])
        answers.insert(1, _ModelAnswer(name, *astuple(few_shot)))
    return answers


def _thought(text: str) -> str:
    """The beginning of a thought: the answer below it is what counts."""
    return f"reasoning: {_excerpt(text, MAX_THOUGHT_LINES, MAX_THOUGHT_CHARACTERS)}"


def _answer(text: str, reasoning: str | None, reasoning_cut: bool) -> str:
    return _excerpt(text) if text.strip() else no_answer(reasoning, reasoning_cut)


def _excerpt(text: str, max_lines: int = MAX_LINES, max_characters: int = MAX_CHARACTERS) -> str:
    """The text with control characters made visible; a long text is truncated."""
    lines = printable(text[:max_characters]).replace("\t", "    ").split("\n")
    truncated = len(lines) > max_lines or len(text) > max_characters
    return "\n".join(lines[:max_lines]) + (" …" if truncated else "") or NOTHING
