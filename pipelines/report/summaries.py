"""The sentences of the report: the verdict, what each task shows, and what makes its numbers doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pipelines.report.formatting import (
    BASE_AND_TUNED,
    count,
    heading,
    interval,
    joined,
    number,
    one_line,
    signed,
    unit_name,
)
from pipelines.report.run_files import Completion
from pipelines.scoring.unicode_text import label_finder

if TYPE_CHECKING:
    from pipelines.report.results import Analysis, Example, TaskResult
    from pipelines.report.retention import BackwardTransfer

Form = Callable[[str], str]
"""Of a label, by which labels are compared: `Metric.label_form`."""

FEW_ROWS = 30
"""Below this the interval is wide and its form uncertain."""

OFTEN = 0.1
"""The share of cut or empty answers from which it is worth a sentence."""

NEAR_LIMIT = 1.0
"""Points from 0 or 100 at which a score is called floor or ceiling."""

FORM_ONLY = 5.0
"""Points by which the loose score must pass the exact one before the report speaks of form."""


def headline(analysis: Analysis) -> str:
    """The whole run in one line: "Better on a and b; worse on c; cannot tell on d. Gate failed: a."."""
    if not analysis.tasks:
        return "No prompt has a reference, so nothing is scored: read the answers, or rate them blind."
    parts = []
    for verdict in ("better", "worse", "cannot tell"):
        names = [name for name, task in analysis.tasks.items() if task.verdict == verdict]
        if names:
            parts.append(f"{verdict} on {joined(names)}")
    text = "; ".join(parts) + "."
    if analysis.sides == BASE_AND_TUNED:
        text = text[0].upper() + text[1:]
    else:
        text = f"{analysis.sides[1]} against {analysis.sides[0]}: {text}"
    lost = [guard.name for guard in analysis.guards.values() if guard.verdict == "lost"]
    if lost:
        text += f" Lost on {joined(lost)}."
    failed = [gate.name for gate in analysis.gates if not gate.passed]
    if failed:
        text += f" {'Gate' if len(failed) == 1 else 'Gates'} failed: {joined(failed)}."
    return text


def sentence(task: TaskResult) -> str:
    """What the numbers of one task say, in plain words, without its name."""
    numbers = f"{task.title} {number(task.base, task.unit)} → {number(task.tuned, task.unit)} on {count(task.n, 'row')}"
    change = f"{signed(task.delta, task.unit)} {unit_name(task.unit)}"
    span = f"95 % interval {interval(task.ci95, task.unit)}"
    if task.told_apart:
        return f"{task.verdict}: {numbers}, {change} ({span})."
    text = f"cannot tell: {numbers}; {change} may be chance ({span})"
    if task.better == task.worse == 0:
        text = f"cannot tell: {numbers}; both models score the same on every row"
    if task.rows_needed:
        return f"{text}; about {task.rows_needed:,} test rows would tell (80 % power), if it is as large as it seems."
    return f"{text}."


def bwt_sentence(bwt: BackwardTransfer) -> str:
    """Backward transfer in plain words."""
    return (
        f"Backward transfer over {count(bwt.tasks, 'earlier task')}: {signed(bwt.value)} points since each was trained "
        f"(95 % interval {interval(bwt.ci95)})."
    )


def notes(task: TaskResult) -> list[str]:
    """What a reader should keep in mind about one task, the missing rows first."""
    if task.rows_needed and not task.told_apart:
        enough = f"about {task.rows_needed:,} test rows would (80 % power)"
        missing = f"These rows cannot tell; {enough}, if the difference is as large as it seems."
        return [missing, *task.flags]
    return task.flags


def loose_scores(examples: Sequence[Example], form: Form) -> tuple[float, float]:
    """Per side, the share (%) of answers that contain the right label and no other label of the task: a model that knows the
    answer, whether or not it knows the format."""
    named_in = label_finder({example.reference for example in examples}, form)
    right = [{form(example.reference)} for example in examples]
    base = sum(named_in(example.base) == label for example, label in zip(examples, right, strict=True))
    tuned = sum(named_in(example.tuned) == label for example, label in zip(examples, right, strict=True))
    return 100 * base / len(examples), 100 * tuned / len(examples)


def flags(
    task: TaskResult, base: Sequence[Completion], tuned: Sequence[Completion], sides: tuple[str, str], form: Form
) -> list[str]:
    """Sentences about what makes the numbers of this task worth less than they look."""
    return [
        *_too_few(task),
        *_format_only(task, sides),
        *_one_answer(task, base, tuned, sides, form),
        *_limits(task, sides),
        *_unscored(task, sides),
        *_empty_or_cut(task, sides[0], base),
        *_empty_or_cut(task, sides[1], tuned),
    ]


def _too_few(task: TaskResult) -> Iterable[str]:
    if task.n < FEW_ROWS:
        yield f"Only {count(task.n, 'test row')}: with fewer than {FEW_ROWS} the interval itself is uncertain."


def _format_only(task: TaskResult, sides: tuple[str, str]) -> Iterable[str]:
    if task.loose and task.loose.base - task.base >= FORM_ONLY:
        yield (
            f"{heading(sides[0])} names the right label and no other in {number(task.loose.base)} % of its answers, in the exact "
            f"form in {number(task.base)} %: counted by label alone the change is "
            f"{signed(task.loose.tuned - task.loose.base)} points, the rest is learning the form."
        )


def _one_answer(
    task: TaskResult, base: Sequence[Completion], tuned: Sequence[Completion], sides: tuple[str, str], form: Form
) -> Iterable[str]:
    if not task.single_label:
        return
    references = Counter(form(line.reference) for line in base)
    most, times = references.most_common(1)[0]
    spelt = next(line.reference for line in base if form(line.reference) == most)
    if len(references) == 1:
        yield f"Every reference is “{one_line(spelt, 40)}”: always giving it would score 100 %."
        return
    yield f"Always answering “{one_line(spelt, 40)}” would score {number(100 * times / len(base))} %."
    for side, lines in zip(sides, (base, tuned), strict=True):
        answers = {form(line.completion) for line in lines}
        if len(answers) == 1 and len(lines) > 1 and answers != {""}:
            yield f"{heading(side)} always answers “{one_line(lines[0].completion, 40)}”: it does not look at the prompt."


def _limits(task: TaskResult, sides: tuple[str, str]) -> Iterable[str]:
    if not task.percent_scale:
        return
    for side, value in zip(sides, (task.base, task.tuned), strict=True):
        if value <= NEAR_LIMIT:
            yield f"{heading(side)} is at the floor ({number(value)}): read some of its answers before trusting the change."
        elif value >= 100 - NEAR_LIMIT:
            yield f"{heading(side)} is at the ceiling ({number(value)}): harder rows would be needed to see a difference."


def _unscored(task: TaskResult, sides: tuple[str, str]) -> Iterable[str]:
    if task.unscored_base or task.unscored_tuned:
        yield (
            f"Left out of the pairs: {count(task.unscored_base, f'{sides[0]} answer')} and "
            f"{count(task.unscored_tuned, f'{sides[1]} answer')} that could not be scored."
        )


def _empty_or_cut(task: TaskResult, side: str, lines: Sequence[Completion]) -> Iterable[str]:
    empty = sum(not line.completion.strip() for line in lines)
    if empty >= OFTEN * len(lines):
        yield f"{empty:,} of {len(lines):,} {side} answers are empty."
    cut = [line.num_generated_tokens for line in lines if line.finish_reason == "length"]
    # A sentence that was cut is no label, and would be none with more room.
    if not task.single_label and len(cut) >= max(1, OFTEN * len(lines)):
        cut_off = f"{len(cut):,} of {len(lines):,} {side} answers were cut at {max(cut):,} tokens"
        yield f"{cut_off}: with more room they might score higher."
