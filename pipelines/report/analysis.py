"""The analysis of a run: its files scored and compared once, for every form of the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.console.activity import track_activity
from pipelines.errors import Problem, RunError
from pipelines.report.few_shot import align, few_shot_answer
from pipelines.report.formatting import BASE_AND_TUNED
from pipelines.report.gates import check_gates
from pipelines.report.reasoning import reasoning_counts
from pipelines.report.results import (
    Analysis,
    Change,
    ExampleComparison,
    FewShotResult,
    NllChange,
    Pair,
    SamplePrompt,
    TaskResult,
)
from pipelines.report.retention import backward_transfer, compare_retention, retention_changes
from pipelines.report.run_files import RunFiles, read_run
from pipelines.report.summaries import drawn_rows_caveat, few_shot_caveats, find_caveats, label_anywhere_accuracies
from pipelines.scoring.metric import Metric, metric_from_key
from pipelines.scoring.statistics import Comparison, bootstrap_interval, compare, holm
from pipelines.storage.records import CompletionRecord, SamplePromptRecord
from pipelines.storage.strict_json import dump


@track_activity("reading the run and scoring its completions")
def analyse(folder: Path) -> Analysis:
    """Reads a run folder and compares its two models row by row. Raises RunError."""
    files = read_run(folder)
    models = files.manifest.models or BASE_AND_TUNED
    metrics = {task: metric_from_key(key) for task, key in files.metrics.items()}
    _check_not_all_empty(files, metrics)
    rows = zip(files.base, files.tuned, align(files.few_shot, files.base), strict=True)
    examples = [_example(base, tuned, few_shot, metrics[base.task]) for base, tuned, few_shot in rows]
    examples = _number_answers(examples)
    sample_prompts = [
        SamplePrompt(base.title, base.prompt, base.completion, tuned.completion, **_reasoning(base, tuned))
        for base, tuned in zip(files.base_sample_prompts, files.tuned_sample_prompts, strict=True)
    ]
    tasks = _task_results(files, metrics, examples, models)
    retention = compare_retention(files.base_retention, files.tuned_retention)
    return Analysis(
        manifest=files.manifest,
        config=files.config,
        tasks=tasks,
        examples=examples,
        sample_prompts=sample_prompts,
        training=files.training,
        models=models,
        gates=check_gates(files.config, tasks, retention),
        retention=retention,
        retention_changes=retention_changes(files.base_retention, files.tuned_retention),
        backward_transfer=backward_transfer(files.tuned_retention),
    )


def _check_not_all_empty(files: RunFiles, metrics: Mapping[str, Metric]) -> None:
    """Raises RunError if a model generated nothing for any row: the run failed, and there is no result."""
    for model, records in (("base", files.base), ("tuned", files.tuned)):
        generated = [record for record in records if metrics[record.task].scores_completions]
        if generated and not any(record.completion.strip() or record.reasoning for record in generated):
            path = files.path / model / "completions.jsonl"
            advice = "check config.yaml's generation and learning rate, delete this folder and run the job again"
            raise RunError(Problem(f"every completion is empty; {advice}", str(path)))


def _number_answers(examples: Sequence[ExampleComparison]) -> list[ExampleComparison]:
    """The examples with the number of each answer among those of its row, where a row has several."""
    totals = Counter((example.task, example.row) for example in examples)
    seen: Counter[tuple[str, int]] = Counter()
    numbered = []
    for example in examples:
        key = (example.task, example.row)
        seen[key] += 1
        numbered.append(replace(example, answer=seen[key]) if totals[key] > 1 else example)
    return numbered


def _example(
    base: CompletionRecord, tuned: CompletionRecord, few_shot: CompletionRecord | None, metric: Metric
) -> ExampleComparison:
    before, after = metric.score(base.model_dump()), metric.score(tuned.model_dump())
    gain = 0.0
    change: Change = "unscored"
    if before.value is not None and after.value is not None:
        gain = (after.value - before.value) * (1 if metric.higher_is_better else -1)
        change = "same" if math.isclose(after.value, before.value) else "better" if gain > 0 else "worse"
    return ExampleComparison(
        task=base.task,
        row=base.row,
        prompt=base.prompt,
        reference=base.reference,
        base=base.completion,
        tuned=tuned.completion,
        base_score=before.value,
        tuned_score=after.value,
        base_detail=before.detail,
        tuned_detail=after.detail,
        change=change,
        gain=gain,
        both_wrong=metric.binary and before.value == 0 and after.value == 0,
        reference_reasoning=base.reference_reasoning,
        few_shot=None if few_shot is None else few_shot_answer(few_shot, metric),
        **_reasoning(base, tuned),
    )


def _reasoning[R: (CompletionRecord, SamplePromptRecord)](base: R, tuned: R) -> dict[str, Any]:
    """What the results show of the reasoning of both models."""
    return {
        "base_reasoning": base.reasoning,
        "tuned_reasoning": tuned.reasoning,
        "base_reasoning_cut": base.reasoning_cut,
        "tuned_reasoning_cut": tuned.reasoning_cut,
    }


def _task_results(
    files: RunFiles, metrics: Mapping[str, Metric], examples: Sequence[ExampleComparison], models: tuple[str, str]
) -> dict[str, TaskResult]:
    comparisons = {task: _compare(task, metrics, examples, files) for task in metrics}
    few_shot = _few_shot_results(files, metrics, examples)
    p_values = [comparison.p_value for comparison in comparisons.values()]
    results = {}
    for (task, comparison), p_holm in zip(comparisons.items(), holm(p_values), strict=True):
        base = [record for record in files.base if record.task == task]
        tuned = [record for record in files.tuned if record.task == task]
        nll_change = _nll_change(
            [(one.reference_nll, other.reference_nll) for one, other in zip(base, tuned, strict=True)]
        )
        own_examples = [example for example in examples if example.task == task]
        result = replace(
            _task_result(task, metrics[task], comparison, p_holm, nll_change, own_examples),
            reasoning=reasoning_counts(base, tuned),
            few_shot=few_shot.get(task),
        )
        data = files.manifest.data.get(task)
        drawn = data.drawn.get("test") if data else None
        caveats = [
            *find_caveats(result, base, tuned, models),
            *([drawn_rows_caveat(result, drawn)] if drawn else []),
            *few_shot_caveats(result, [record for record in files.few_shot if record.task == task]),
            *(files.few_shot_tasks[task].notes if task in files.few_shot_tasks else []),
            *(data.notes if data else []),
        ]
        results[task] = replace(result, caveats=caveats)
    return results


def _few_shot_results(
    files: RunFiles, metrics: Mapping[str, Metric], examples: Sequence[ExampleComparison]
) -> dict[str, FewShotResult]:
    """The comparison of the tuned model with the base that has examples in its prompt, by task.

    p-values are corrected for the number of these comparisons, which answer a question of their own.
    """
    tasks = [name for name in metrics if name in files.few_shot_tasks and files.few_shot_tasks[name].has_prompts]
    before = {
        task: [
            None if example.few_shot is None or example.task != task else example.few_shot.score for example in examples
        ]
        for task in tasks
    }
    scored = {task: _paired_scores(task, before[task], examples, files) for task in tasks}
    comparisons = {
        task: compare(
            scores.before,
            scores.after,
            binary=metrics[task].binary,
            clusters=scores.clusters,
            num_comparisons=len(tasks),
        )
        for task, scores in scored.items()
        if scores.before
    }
    p_values = holm([comparison.p_value for comparison in comparisons.values()])
    return {
        task: FewShotResult(
            metric=metrics[task],
            comparison=comparison,
            p_holm=p_holm,
            **_counts_of_changes(comparison, metrics[task]),
            k=files.few_shot_tasks[task].k,
            instruction=files.few_shot_tasks[task].instruction,
            num_tokens=files.few_shot_tasks[task].num_tokens,
            unscored=sum(
                example.few_shot is not None and example.few_shot.score is None
                for example in examples
                if example.task == task
            ),
        )
        for (task, comparison), p_holm in zip(comparisons.items(), p_values, strict=True)
    }


def _counts_of_changes(comparison: Comparison, metric: Metric) -> dict[str, int]:
    """The keys of PairedResult with the numbers of rows."""
    better, worse = comparison.num_increased, comparison.num_decreased
    if not metric.higher_is_better:
        better, worse = worse, better
    return {"num_better": better, "num_worse": worse, "num_same": comparison.n - better - worse}


class _PairedScores(NamedTuple):
    """The scores of a task's rows that both models could be scored on, and the clusters of these rows, if any."""

    before: Sequence[float]
    after: Sequence[float]
    clusters: Sequence[str] | None


def _paired_scores(
    task: str, before: Sequence[float | None], examples: Sequence[ExampleComparison], files: RunFiles
) -> _PairedScores:
    """`before`: the score of each example by the model that the tuned one is compared with."""
    column = files.cluster_column(task)
    # Several answers of one conversation are not independent: its row is then their cluster.
    has_several = any(example.answer is not None for example in examples if example.task == task)
    scored = [
        (score, example.tuned_score, str(record.fields.get(column)) if column else dump(record.fields))
        for score, example, record in zip(before, examples, files.base, strict=True)
        if example.task == task and score is not None and example.tuned_score is not None
    ]
    if not scored:
        return _PairedScores([], [], None)
    first, second, clusters = zip(*scored, strict=True)
    return _PairedScores(first, second, clusters if column or has_several else None)


def _compare(
    task: str, metrics: Mapping[str, Metric], examples: Sequence[ExampleComparison], files: RunFiles
) -> Comparison:
    scores = _paired_scores(task, [example.base_score for example in examples], examples, files)
    if not scores.before:
        message = (
            f"task {task!r}: no row could be scored on both models; read the completions, "
            "then give the task another metric in the config and run the job again"
        )
        raise RunError(Problem(message, str(files.path / "tuned" / "completions.jsonl")))
    return compare(
        scores.before,
        scores.after,
        binary=metrics[task].binary,
        clusters=scores.clusters,
        num_comparisons=len(metrics),
    )


def _task_result(
    task: str,
    metric: Metric,
    comparison: Comparison,
    p_holm: float,
    nll_change: NllChange | None,
    examples: Sequence[ExampleComparison],
) -> TaskResult:
    changes = [example.change for example in examples]
    return TaskResult(
        name=task,
        metric=metric,
        comparison=comparison,
        p_holm=p_holm,
        num_better=changes.count("better"),
        num_worse=changes.count("worse"),
        num_same=changes.count("same"),
        unscored=Pair(
            sum(example.base_score is None for example in examples),
            sum(example.tuned_score is None for example in examples),
        ),
        reference_nll=nll_change,
        label_anywhere_accuracy=Pair(*label_anywhere_accuracies(examples, metric.normalize_label))
        if metric.single_label
        else None,
    )


def _nll_change(nlls: Sequence[tuple[float | None, float | None]]) -> NllChange | None:
    measured = [(base, tuned) for base, tuned in nlls if base is not None and tuned is not None]
    if len(measured) < len(nlls):
        return None
    base, tuned = np.asarray(measured).T
    low, high = bootstrap_interval(tuned - base)
    return NllChange(float(base.mean()), float(tuned.mean()), float((tuned - base).mean()), (float(low), float(high)))
