"""The base with examples in its prompt in the report: whether tuning gains more than a few examples do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.report.formatting import BASE_AND_TUNED, change_unit, interval, joined, signed
from pipelines.report.results import Analysis, FewShotAnswer, FewShotResult, TaskResult
from pipelines.scoring.metric import Metric
from pipelines.storage.records import CompletionRecord

FEW_SHOT_NOTE = (
    "The base was also given training rows as examples in its prompt, the same for all rows of a task; what tuning "
    "gains beyond that is what it is worth."
)


MAX_DESCRIBED = 3
"""Tasks of a sentence about the worth of tuning whose results it states."""


def few_shot_answer(record: CompletionRecord, metric: Metric) -> FewShotAnswer:
    """The completion of the base after examples, with its score."""
    score = metric.score(record.model_dump())
    return FewShotAnswer(record.completion, score.value, score.detail, record.reasoning, record.reasoning_cut)


def given_in_prompt(result: FewShotResult) -> str:
    """What the base was given, such as "4 examples in the prompt"."""
    return f"{result.given} in the prompt"


def few_shot_name(tasks: Iterable[TaskResult]) -> str:
    """The heading of the base with examples, such as "Base + 4 examples", or "Base + examples" if the tasks differ."""
    given = {task.few_shot.given for task in tasks if task.few_shot is not None}
    return f"Base + {given.pop().replace('an instruction', 'instruction') if len(given) == 1 else 'examples'}"


def beyond_few_shot(result: FewShotResult) -> str:
    """The gain of the tuned model over the base with examples, with its interval."""
    change = f"{signed(result.gain, result.unit)} {change_unit(result.unit)}"
    return f"{change} (95 % CI {interval(result.gain_ci95, result.unit)})"


def few_shot_sentence(task: TaskResult) -> str:
    """The comparison of one task with examples in the prompt as a sentence; "" without one."""
    result = task.few_shot
    if result is None:
        return ""
    examples, beyond = given_in_prompt(result), beyond_few_shot(result)
    if result.verdict == "better":
        return f"Gain beyond {examples}: {beyond}."
    if result.verdict == "worse":
        return f"{_score_higher(result)}: gain beyond that {beyond}."
    return f"No significant gain beyond {examples}: {beyond}."


def worth_of_tuning(analysis: Analysis) -> list[str]:
    """Whether tuning was worth it, in a sentence for each answer: yes, not shown, no. Empty without examples.

    Tuning was worth it where the tuned model is better than the base without examples and than the base with some. It
    was not where one of them is better than the tuned model. A comparison of two models says of the second only whether
    it is better than its base with examples: the first is not its base.
    """
    is_run = analysis.models == BASE_AND_TUNED
    groups: dict[str, list[TaskResult]] = {"better": [], "inconclusive": [], "worse": []}
    for task in analysis.tasks.values():
        if task.few_shot is not None:
            verdicts = [task.few_shot.verdict, *([task.verdict] if is_run else [])]
            answers = ("worse", "inconclusive", "better")
            groups[next(answer for answer in answers if answer in verdicts)].append(task)
    if is_run:
        words = {"better": "worth it", "inconclusive": "not shown to be worth it", "worse": "not worth it"}
        beginnings = {verdict: f"Tuning was {text}" for verdict, text in words.items()}
    else:
        words = {"better": "better", "inconclusive": "not significantly better", "worse": "worse"}
        name = analysis.models[1]
        beginnings = {verdict: f"{name} is {text} than its base with examples" for verdict, text in words.items()}
    describe = {"better": _yes, "inconclusive": _open, "worse": _no}
    return [
        f"{beginnings[verdict]} on {_named(tasks, describe[verdict])}." for verdict, tasks in groups.items() if tasks
    ]


def _named(tasks: Sequence[TaskResult], describe: Callable[[TaskResult, FewShotResult], str]) -> str:
    """The names of the tasks, each with its result unless they are many."""
    if len(tasks) > MAX_DESCRIBED:
        return joined([task.name for task in tasks])
    return joined([f"{task.name} ({describe(task, task.few_shot)})" for task in tasks if task.few_shot is not None])


def _yes(task: TaskResult, result: FewShotResult) -> str:
    change = f"{signed(result.gain, result.unit)} {change_unit(result.unit)}"
    return f"{change} beyond {given_in_prompt(result)}, 95 % CI {interval(result.gain_ci95, result.unit)}"


def _open(task: TaskResult, result: FewShotResult) -> str:
    if result.verdict == "better":
        return "better than with examples in the prompt, but not significantly better than the base without them"
    return f"{given_in_prompt(result)} may do as well: gain beyond that {_without_brackets(result)}"


def _no(task: TaskResult, result: FewShotResult) -> str:
    if result.verdict == "worse":
        return f"{_score_higher(result)}: gain beyond that {_without_brackets(result)}"
    return "the base scores higher without any tuning"


def _score_higher(result: FewShotResult) -> str:
    is_singular = result.k == 1 and not result.instruction or not result.k
    return f"{given_in_prompt(result)} score{'s' if is_singular else ''} higher"


def _without_brackets(result: FewShotResult) -> str:
    return beyond_few_shot(result).replace(" (", ", ").removesuffix(")")


def align(records: Sequence[CompletionRecord], base: Sequence[CompletionRecord]) -> list[CompletionRecord | None]:
    """For each completion of the base that of the same row after examples; None for tasks without examples."""
    remaining: Mapping[str, Iterable[CompletionRecord]] = {
        task: iter([record for record in records if record.task == task]) for task in {one.task for one in records}
    }
    return [next(iter(remaining[record.task])) if record.task in remaining else None for record in base]
