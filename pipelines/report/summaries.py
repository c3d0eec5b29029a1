"""The sentences of the report: the headline, and summary and caveats of each result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from pipelines.config.strategy_registry import strategy_title
from pipelines.report.few_shot import few_shot_name, few_shot_sentence
from pipelines.report.formatting import (
    BASE_AND_TUNED,
    change_unit,
    count,
    heading,
    interval,
    joined,
    number,
    one_line,
    signed,
)
from pipelines.report.reasoning import reasoning_caveats
from pipelines.report.results import Analysis, ExampleComparison, TaskResult
from pipelines.report.retention import BackwardTransfer, RetentionResult
from pipelines.scoring.unicode_text import make_label_finder
from pipelines.storage.records import CompletionRecord, DrawnRows

LabelNormalizer = Callable[[str], str]
"""Returns the form of a label in which it is compared: `Metric.normalize_label`."""

MIN_RELIABLE_ROWS = 30
"""Number of rows below which the interval itself is unreliable."""

MIN_CAVEAT_SHARE = 0.1
"""Share of truncated or empty completions from which a caveat is written."""

LIMIT_MARGIN = 1.0
"""Points from 0 or 100 within which a score is at the floor or ceiling."""

MIN_FORMAT_GAP = 5.0
"""Points between the accuracy of labels anywhere in the completion and exact match from which a caveat is written."""


def headline(analysis: Analysis) -> str:
    """The result in one line, such as "Better on a and b; inconclusive on c. Gate failed: a."."""
    if not analysis.tasks:
        return "No prompt has a reference, so nothing is scored: read the completions, or rate them blind."
    parts = []
    for verdict in ("better", "worse", "inconclusive"):
        names = [name for name, task in analysis.tasks.items() if task.verdict == verdict]
        if names:
            parts.append(f"{verdict} on {joined(names)}")
    text = "; ".join(parts) + "."
    if analysis.models == BASE_AND_TUNED:
        text = text[0].upper() + text[1:]
    else:
        text = f"{analysis.models[1]} compared with {analysis.models[0]}: {text}"
    regressed = [result.name for result in analysis.retention.values() if result.verdict == "regressed"]
    if regressed:
        text += f" Retention regressed on {joined(regressed)}."
    failed = [gate.name for gate in analysis.gates if not gate.passed]
    if failed:
        text += f" {'Gate' if len(failed) == 1 else 'Gates'} failed: {joined(failed)}."
    return text


def task_summary(task: TaskResult) -> str:
    """The result of one task in a sentence, without the name of the task."""
    comparison, unit = task.comparison, task.unit
    means = (
        f"{task.title} {number(comparison.base, unit)} → {number(comparison.tuned, unit)} on "
        f"{count(comparison.n, 'row')}"
    )
    change = f"{signed(comparison.delta, unit)} {change_unit(unit)}"
    ci95 = f"95 % CI {interval(comparison.ci95, unit)}"
    examples = f" {sentence}" if (sentence := few_shot_sentence(task)) else ""
    if task.significant:
        return f"{task.verdict}: {means}, {change} ({ci95}).{examples}"
    if task.num_better == task.num_worse == 0:
        text = f"inconclusive: {means}; both models score the same on every row"
    else:
        text = f"inconclusive: {means}; {change} is not significant ({ci95})"
    if comparison.required_sample_size:
        return f"{text}; {_sample_size(comparison.required_sample_size)}.{examples}"
    return f"{text}.{examples}"


def _sample_size(rows: int) -> str:
    return f"≈{rows:,} test rows needed for 80 % power at the observed effect size"


def retention_summary(analysis: Analysis) -> str:
    """The improved tasks and regressed retention evals in one line; "" if no retention eval was scored."""
    if not analysis.retention:
        return ""
    results = analysis.retention.values()
    improved = [_named_change(task) for task in analysis.tasks.values() if task.verdict == "better"]
    regressed = [_named_change(result) for result in results if result.verdict == "regressed"]
    sentences = [
        f"Improved: {', '.join(improved)}." if improved else "No task improved significantly.",
        f"Regressed: {', '.join(regressed)}." if regressed else "No retention eval regressed significantly.",
        *(result.summary for result in results if result.measure.is_divergence),
    ]
    return " ".join(sentences)


def _named_change(result: TaskResult | RetentionResult) -> str:
    return f"{result.name} ({signed(result.comparison.delta, result.unit)} {change_unit(result.unit)})"


def training_summary(analysis: Analysis) -> str:
    """The training method and the strategies against forgetting in a sentence."""
    strategies = ", ".join(map(strategy_title, analysis.strategies)) or "none"
    return f"Training method: {analysis.training_method}; strategies against forgetting: {strategies}."


def backward_transfer_summary(transfer: BackwardTransfer) -> str:
    """Backward transfer in a sentence."""
    return (
        f"Backward transfer over {count(transfer.tasks, 'earlier task')}: {signed(transfer.value)} points "
        f"(95 % CI {interval(transfer.ci95)})."
    )


def task_caveats(task: TaskResult) -> list[str]:
    """The caveats of one task, the required sample size first."""
    required = task.comparison.required_sample_size
    if required and not task.significant:
        return [f"Inconclusive: {_sample_size(required)}.", *task.caveats]
    return task.caveats


def label_anywhere_accuracies(examples: Sequence[ExampleComparison], normalize: LabelNormalizer) -> tuple[float, float]:
    """Per model, the percentage of completions with the right label and no other label of the task.

    A model with a high value knows the answer, whether or not it knows the format.
    """
    labels_in = make_label_finder({example.reference for example in examples}, normalize)
    right = [{normalize(example.reference)} for example in examples]
    base = sum(labels_in(example.base) == label for example, label in zip(examples, right, strict=True))
    tuned = sum(labels_in(example.tuned) == label for example, label in zip(examples, right, strict=True))
    return 100 * base / len(examples), 100 * tuned / len(examples)


def find_caveats(
    task: TaskResult, base: Sequence[CompletionRecord], tuned: Sequence[CompletionRecord], models: tuple[str, str]
) -> list[str]:
    """Sentences about what limits the meaning of the result of a task."""
    return [
        *reasoning_caveats(task.reasoning, base, tuned, models),
        *_small_sample(task),
        *_format_only(task, models),
        *_constant_label(task, base, tuned, models),
        *_floor_or_ceiling(task, models),
        *_unscored(task, models),
        *_empty_or_truncated(task, models[0], base),
        *_empty_or_truncated(task, models[1], tuned),
    ]


def drawn_rows_caveat(task: TaskResult, drawn: DrawnRows) -> str:
    """How many of how many test rows were evaluated, and how precise the result is. The width of an interval falls
    with the root of the number of rows."""
    low, high = task.comparison.ci95
    half, unit = (high - low) / 2, task.unit
    with_all = half * math.sqrt(drawn.rows / drawn.of)
    return (
        f"{drawn.rows:,} of {drawn.of:,} test rows were evaluated, drawn at random: the 95 % CI of the change is "
        f"±{number(half, unit)} {change_unit(unit)} wide; with all rows it would be about ±{number(with_all, unit)} "
        "(report.test_rows)."
    )


def _small_sample(task: TaskResult) -> Iterable[str]:
    rows = task.comparison.n
    if rows < MIN_RELIABLE_ROWS:
        yield f"Small sample ({count(rows, 'test row')}, fewer than {MIN_RELIABLE_ROWS}): the CI may be unreliable."


def _format_only(task: TaskResult, models: tuple[str, str]) -> Iterable[str]:
    anywhere, exact = task.label_anywhere_accuracy, task.comparison.base
    if anywhere and anywhere.base - exact >= MIN_FORMAT_GAP:
        yield (
            f"{heading(models[0])} gives the right label and no other in {number(anywhere.base)} % of its completions, "
            f"in the exact format in {number(exact)} %. Without the format the change is "
            f"{signed(anywhere.tuned - anywhere.base)} points; the rest is learning the format."
        )


def _constant_label(
    task: TaskResult, base: Sequence[CompletionRecord], tuned: Sequence[CompletionRecord], models: tuple[str, str]
) -> Iterable[str]:
    if not task.metric.single_label:
        return
    normalize = task.metric.normalize_label
    references = Counter(normalize(record.reference) for record in base)
    most_common, frequency = references.most_common(1)[0]
    label = one_line(next(record.reference for record in base if normalize(record.reference) == most_common), 40)
    if len(references) == 1:
        yield f"Every reference is “{label}”: always giving it would score 100 %."
        return
    yield f"Always answering “{label}” would score {number(100 * frequency / len(base))} %."
    for model, records in zip(models, (base, tuned), strict=True):
        yield from _same_label(task, heading(model), records)


def _same_label(task: TaskResult, model: str, records: Sequence[CompletionRecord]) -> Iterable[str]:
    labels = {task.metric.normalize_label(record.completion) for record in records}
    if task.metric.single_label and len(labels) == 1 and len(records) > 1 and labels != {""}:
        yield f"{model} always answers “{one_line(records[0].completion, 40)}”, whatever the prompt is."


def few_shot_caveats(task: TaskResult, records: Sequence[CompletionRecord]) -> Iterable[str]:
    """Sentences about what limits the comparison with the base that has examples in its prompt."""
    if task.few_shot is not None:
        name = few_shot_name([task])
        yield from _same_label(task, name, records)
        yield from _empty_or_truncated(task, f"{name[0].lower()}{name[1:]}", records)


def _floor_or_ceiling(task: TaskResult, models: tuple[str, str]) -> Iterable[str]:
    if not task.percent_scale:
        return
    for model, score in zip(models, (task.comparison.base, task.comparison.tuned), strict=True):
        if score <= LIMIT_MARGIN:
            yield (
                f"{heading(model)} is at the floor ({number(score)}): read some of its completions before trusting "
                "the change."
            )
        elif score >= 100 - LIMIT_MARGIN:
            yield f"{heading(model)} is at the ceiling ({number(score)}): only harder rows would show a difference."


def _unscored(task: TaskResult, models: tuple[str, str]) -> Iterable[str]:
    if task.unscored.base or task.unscored.tuned:
        yield (
            f"Left out of the comparison: {count(task.unscored.base, f'{models[0]} completion')} and "
            f"{count(task.unscored.tuned, f'{models[1]} completion')} that could not be scored."
        )


def _empty_or_truncated(task: TaskResult, model: str, records: Sequence[CompletionRecord]) -> Iterable[str]:
    empty = sum(not record.completion.strip() and not record.reasoning for record in records)
    if empty >= MIN_CAVEAT_SHARE * len(records):
        yield f"{empty:,} of {len(records):,} {model} completions are empty."
    truncated = [
        record.num_generated_tokens
        for record in records
        if record.finish_reason == "length" and not record.reasoning_cut
    ]
    # A truncated sentence is not a label, and would not be one with a higher limit.
    if not task.metric.single_label and len(truncated) >= max(1, MIN_CAVEAT_SHARE * len(records)):
        yield (
            f"{len(truncated):,} of {len(records):,} {model} completions were truncated at {max(truncated):,} tokens: "
            "with a higher limit they might score higher."
        )
