"""`report.md`: short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipelines.report.columns import ResultColumn, retention_columns, task_columns
from pipelines.report.few_shot import FEW_SHOT_NOTE, few_shot_name, worth_of_tuning
from pipelines.report.formatting import count, duration, no_answer, one_line, printable, score
from pipelines.report.results import Analysis, ExampleComparison, TaskResult
from pipelines.report.summaries import (
    backward_transfer_summary,
    headline,
    retention_summary,
    task_summary,
    training_summary,
)

TEXT_WIDTH = 160
"""Characters of a prompt or a completion."""
MAX_SENTENCE = 500
"""Characters of a name or a sentence."""


def render(analysis: Analysis) -> str:
    """The headline, the tables, a few examples and the command that repeats the run."""
    return "\n".join(
        [
            f"## {escape(headline(analysis))}",
            "",
            *_worth_of_tuning(analysis),
            *_gates(analysis),
            *(f"- **{escape(name)}** {escape(task_summary(task))}" for name, task in analysis.tasks.items()),
            "",
            *_tasks(analysis),
            *_retention(analysis),
            *_caveats(analysis.tasks.values()),
            *_examples(analysis),
            *_reproducibility(analysis),
            "",
        ]
    )


def _worth_of_tuning(analysis: Analysis) -> Iterable[str]:
    if sentences := worth_of_tuning(analysis):
        yield from (" ".join(map(escape, sentences)), "")


def _gates(analysis: Analysis) -> Iterable[str]:
    for gate in analysis.gates_failed_first:
        yield f"- {'passed' if gate.passed else '**FAILED**'}: {escape(gate.name)}: {escape(gate.summary)}"
    if analysis.gates:
        yield ""


def _tasks(analysis: Analysis) -> Iterable[str]:
    yield from table(task_columns(analysis.models, analysis.tasks.values()), analysis.tasks.values())
    yield ""
    yield (
        "Both models completed the same rows, and each row is compared with itself; p-values are corrected for the "
        "number of tasks (Holm). "
        + (FEW_SHOT_NOTE + " " if any(task.few_shot for task in analysis.tasks.values()) else "")
        + "*Better* means better than before, not good enough; use gates for that."
    )
    for title, note in analysis.metric_notes.items():
        yield from ("", f"*{escape(title)}:* {escape(note)}")
    yield ""


def table[R](columns: Sequence[ResultColumn[R]], results: Iterable[R]) -> Iterable[str]:
    """The lines of a table with a row per result."""
    yield f"| {' | '.join(escape(column.heading) for column in columns)} |"
    yield f"|{'|'.join('---' if column.alignment == 'left' else '--:' for column in columns)}|"
    for result in results:
        yield f"| {' | '.join(escape(column.text(result)) for column in columns)} |"


def _retention(analysis: Analysis) -> Iterable[str]:
    if not analysis.retention:
        return
    yield from ("### Retention", "", escape(retention_summary(analysis)), "")
    yield from table(retention_columns(analysis.models), analysis.retention.values())
    yield ""
    if analysis.backward_transfer is not None:
        yield from (escape(backward_transfer_summary(analysis.backward_transfer)), "")
    yield from (escape(training_summary(analysis)), "")
    caveats = [(result.name, caveat) for result in analysis.retention.values() for caveat in result.caveats]
    if caveats:
        yield from (*(f"- **{escape(name)}** {escape(caveat)}" for name, caveat in caveats), "")


def _caveats(tasks: Iterable[TaskResult]) -> Iterable[str]:
    caveats = [f"- **{escape(task.name)}** {escape(caveat)}" for task in tasks for caveat in task.caveats]
    if caveats:
        yield from ("### Caveats", "", *caveats, "")


def _examples(analysis: Analysis) -> Iterable[str]:
    yield from (
        "<details><summary>Examples: the largest regression, the largest gain, one that both got wrong</summary>",
        "",
    )
    for name, task in analysis.tasks.items():
        examples = [example for example in analysis.examples_by_regression if example.task == name]
        for example in _pick_examples(examples):
            yield from _example(example, task, analysis.models)
    yield from ("</details>", "")


def _pick_examples(examples_by_regression: list[ExampleComparison]) -> Iterable[ExampleComparison]:
    """The largest regression, the largest gain, and an example that both models got wrong."""
    worse = [example for example in examples_by_regression[:1] if example.change == "worse"]
    better = [example for example in examples_by_regression if example.change == "better"]
    both_wrong = [example for example in examples_by_regression if example.both_wrong]
    yield from (*worse, *better[-1:], *both_wrong[:1])


def _example(example: ExampleComparison, task: TaskResult, models: tuple[str, str]) -> Iterable[str]:
    scores = [score(value, task.unit, task.metric.binary) for value in (example.base_score, example.tuned_score)]
    yield f"**{escape(example.task)}**, {example.row_title}, {example.change}: {' → '.join(scores)}"
    lines = [
        ("prompt", example.prompt, None, False),
        ("reference", example.reference, example.reference_reasoning, False),
        (escape(models[0]), example.base, example.base_reasoning, example.base_reasoning_cut),
        (escape(models[1]), example.tuned, example.tuned_reasoning, example.tuned_reasoning_cut),
    ]
    if (answer := example.few_shot) is not None and task.few_shot is not None:
        lines.insert(3, (few_shot_name([task]), answer.text, answer.reasoning, answer.reasoning_cut))
    for name, text, thought, is_cut in lines:
        shown = code_span(text) if text.strip() else no_answer(thought, is_cut)
        folded = f" <details><summary>reasoning</summary>{code_span(thought)}</details>" if thought else ""
        yield f"- {name}: {shown}{folded}"
    yield ""


def _reproducibility(analysis: Analysis) -> Iterable[str]:
    manifest, training = analysis.manifest, analysis.training
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    trained = (
        f"tuned for {count(training.steps, 'step')} on {count(training.rows, 'row')} "
        f"({training.supervised_tokens:,} supervised tokens) in {duration(training.seconds)}, "
        if training
        else ""
    )
    yield f"{code_span(manifest.base_model)} {trained}seed {manifest.seed}. {escape(versions)}. Repeat it with"
    yield from ("", command_block(manifest.command))


def command_block(text: str) -> str:
    """A block to copy the command from. Spaces and line ends in quotes stay as they are."""
    text = printable(text)
    if "\n" not in text:
        return f"    {text}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def escape(text: str) -> str:
    """The text on one line, with no character that acts as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line(text, MAX_SENTENCE))


def code_span(text: str) -> str:
    """A code span on one line, fenced with more backticks than the text has in a row."""
    line = one_line(text.strip().replace("\n", " ⏎ "), TEXT_WIDTH) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
