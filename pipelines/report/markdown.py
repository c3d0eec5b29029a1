"""`report.md`: short enough for a pull-request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipelines.report.formatting import (
    count,
    duration,
    interval,
    number,
    one_line,
    p_value,
    printable,
    score,
    signed,
)
from pipelines.report.summaries import bwt_sentence, headline, sentence

if TYPE_CHECKING:
    from pipelines.report.results import Analysis, Example, TaskResult

TEXT_WIDTH = 160


def render(analysis: Analysis) -> str:
    """The verdict, the table, a few examples and how to repeat the run."""
    return "\n".join(
        [
            f"## {_escape(headline(analysis))}",
            "",
            *_gates(analysis),
            *(f"- **{_escape(name)}** {_escape(sentence(task))}" for name, task in analysis.tasks.items()),
            "",
            *_table(analysis),
            "",
            *_guards(analysis),
            *_notes(analysis.tasks.values()),
            *_examples(analysis),
            *_run(analysis),
            "",
        ]
    )


def _gates(analysis: Analysis) -> Iterable[str]:
    for gate in analysis.failed_first:
        yield f"- {'passed' if gate.passed else '**FAILED**'}: {_escape(gate.name)}: {_escape(gate.sentence)}"
    if analysis.gates:
        yield ""


def _table(analysis: Analysis) -> Iterable[str]:
    base, tuned = map(_escape, analysis.sides)
    yield f"| task | metric | rows | {base} | {tuned} | change (95 % interval) | p (Holm) | better / worse / same | verdict |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|---|"
    for task in analysis.tasks.values():
        cells = [
            _escape(task.name),
            _escape(task.title),
            f"{task.n:,}",
            number(task.base, task.unit),
            number(task.tuned, task.unit),
            f"{signed(task.delta, task.unit)} ({interval(task.ci95, task.unit)})",
            p_value(task.p_holm),
            f"{task.better} / {task.worse} / {task.same}",
            task.verdict,
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        "Paired on test rows that no training row repeats; p corrected for the number of tasks (Holm). *Better* means better "
        "than before, not good enough: that is for gates to say."
    )
    for title, scoring in analysis.scoring.items():
        yield from ("", f"*{_escape(title)}:* {_escape(scoring)}")


def _guards(analysis: Analysis) -> Iterable[str]:
    if not analysis.guards:
        return
    base, tuned = map(_escape, analysis.sides)
    yield from ("### What was kept", "", _escape(analysis.learned_and_lost), "")
    yield f"| guard | measure | items | {base} | {tuned} | change (95 % interval) | items lost / gained | |"
    yield "|---|---|--:|--:|--:|--:|--:|---|"
    for guard in analysis.guards.values():
        cells = [
            _escape(guard.name),
            _escape(guard.title),
            f"{guard.n:,}",
            number(guard.base, guard.unit),
            number(guard.tuned, guard.unit),
            f"{signed(guard.delta, guard.unit)} ({interval(guard.ci95, guard.unit)})",
            f"{guard.lost} / {guard.gained}",
            guard.verdict,
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    if analysis.bwt is not None:
        yield from (f"{_escape(bwt_sentence(analysis.bwt))}", "")
    yield from (
        f"- **{_escape(guard.name)}** {_escape(flag)}" for guard in analysis.guards.values() for flag in guard.flags
    )
    yield from (f"Trained as {_escape(analysis.strategies)}.", "")


def _notes(tasks: Iterable[TaskResult]) -> Iterable[str]:
    notes = [f"- **{_escape(task.name)}** {_escape(flag)}" for task in tasks for flag in task.flags]
    if notes:
        yield from ("### To keep in mind", "", *notes, "")


def _examples(analysis: Analysis) -> Iterable[str]:
    yield from (
        "<details><summary>Examples: the worst regression, the greatest gain, one that both got wrong</summary>",
        "",
    )
    for name, task in analysis.tasks.items():
        mine = [example for example in analysis.worst_first if example.task == name]
        for example in _telling(mine):
            yield from _example(example, task, analysis.sides)
    yield from ("</details>", "")


def _telling(worst_first: list[Example]) -> Iterable[Example]:
    """The worst regression, the greatest gain, and one that both got wrong: what a reader would pick to be convinced."""
    worst = [example for example in worst_first[:1] if example.change == "worse"]
    gains = [example for example in worst_first if example.change == "better"]
    wrong = [example for example in worst_first if example.both_wrong]
    yield from (*worst, *gains[-1:], *wrong[:1])


def _example(example: Example, task: TaskResult, sides: tuple[str, str]) -> Iterable[str]:
    scores = (
        f"{score(example.base_score, task.unit, task.binary)} → {score(example.tuned_score, task.unit, task.binary)}"
    )
    yield f"**{_escape(example.task)}**, row {example.row}, {example.change}: {scores}"
    names = ("prompt", "reference", *map(_escape, sides))
    texts = (example.prompt, example.reference, example.base, example.tuned)
    yield from (f"- {name}: {_code(text)}" for name, text in zip(names, texts, strict=True))
    yield ""


def _run(analysis: Analysis) -> Iterable[str]:
    manifest, training = analysis.manifest, analysis.training
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    tuned = (
        f"tuned for {count(training.steps, 'step')} on {count(training.rows, 'row')} "
        f"({training.supervised_tokens:,} supervised tokens) in {duration(training.seconds)}, "
        if training
        else ""
    )
    yield f"{_code(manifest.base_model)} {tuned}seed {manifest.seed}. {_escape(versions)}. Repeat it with"
    yield from ("", _command(manifest.command))


def _command(text: str) -> str:
    """A block that can be pasted: what stands in quotes stays as it is, spaces and line ends too."""
    text = printable(text)
    if "\n" not in text:
        return f"    {text}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _escape(text: str) -> str:
    """No character of the text acts as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line(text, 500))


def _code(text: str) -> str:
    """A code span on one line, fenced with more backticks than the text has in a row."""
    line = one_line(text.strip().replace("\n", " ⏎ "), TEXT_WIDTH) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
