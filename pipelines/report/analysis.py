"""From the files of a run to what every form of the report shows, computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipelines.console.activity import doing
from pipelines.errors import Problem, RunError
from pipelines.report.formatting import BASE_AND_TUNED
from pipelines.report.gates import judge
from pipelines.report.results import Analysis, Change, Example, Loss, Probe, Sides, TaskResult
from pipelines.report.retention import (
    backward_transfer,
    guard_changes,
    guard_results,
)
from pipelines.report.run_files import Completion, RunFiles, read_run
from pipelines.scoring.metric import Metric, resolve
from pipelines.scoring.statistics import Comparison, bootstrap_interval, compare, holm


@doing("reading the run and scoring its answers")
def analyse(run: Path) -> Analysis:
    """Read the run folder and compare its two sides, row by row. Raises RunError."""
    files = read_run(run)
    sides = files.manifest.sides or BASE_AND_TUNED
    metrics = {task: resolve(name) for task, name in files.metrics.items()}
    _some_answer(files, metrics)
    examples = [_example(base, tuned, metrics[base.task]) for base, tuned in zip(files.base, files.tuned, strict=True)]
    probes = [
        Probe(base.title, base.prompt, base.completion, tuned.completion)
        for base, tuned in zip(files.base_probes, files.tuned_probes, strict=True)
    ]
    tasks = _tasks(files, metrics, examples, sides)
    guards = guard_results(files.base_guards, files.tuned_guards)
    return Analysis(
        manifest=files.manifest,
        config=files.config,
        tasks=tasks,
        examples=examples,
        probes=probes,
        training=files.training,
        sides=sides,
        gates=judge(files.config, tasks, guards),
        guards=guards,
        guard_changes=guard_changes(files.base_guards, files.tuned_guards),
        bwt=backward_transfer(files.tuned_guards),
    )


def _example(base: Completion, tuned: Completion, metric: Metric) -> Example:
    was, now = metric.score(base.model_dump()), metric.score(tuned.model_dump())
    gain = 0.0
    change: Change = "unscored"
    if was.value is not None and now.value is not None:
        gain = (now.value - was.value) * (1 if metric.higher_is_better else -1)
        change = "same" if math.isclose(now.value, was.value) else "better" if gain > 0 else "worse"
    return Example(
        task=base.task,
        row=base.row,
        prompt=base.prompt,
        reference=base.reference,
        base=base.completion,
        tuned=tuned.completion,
        base_score=was.value,
        tuned_score=now.value,
        base_detail=was.detail,
        tuned_detail=now.detail,
        change=change,
        gain=gain,
        both_wrong=metric.binary and was.value == 0 and now.value == 0,
    )


def _tasks(
    files: RunFiles, metrics: dict[str, Metric], examples: Sequence[Example], sides: tuple[str, str]
) -> dict[str, TaskResult]:
    comparisons = {task: _compare(task, metrics, examples, files) for task in metrics}
    p_values = [comparison.p_value for comparison in comparisons.values()]
    return {
        task: _task(task, metrics[task], comparisons[task], p_holm, files, examples, sides)
        for task, p_holm in zip(metrics, holm(p_values), strict=True)
    }


def _compare(task: str, metrics: dict[str, Metric], examples: Sequence[Example], files: RunFiles) -> Comparison:
    group = files.group_column(task)
    scored = [
        (example.base_score, example.tuned_score, group and str(line.fields.get(group)))
        for example, line in zip(examples, files.base, strict=True)
        if example.task == task and example.base_score is not None and example.tuned_score is not None
    ]
    if not scored:
        message = (
            f"task {task!r}: no row could be scored on both sides; read the completions, "
            "then give the task another metric in the config and run the job again"
        )
        raise RunError(Problem(message, str(files.path / "tuned" / "completions.jsonl")))
    base, tuned, clusters = zip(*scored, strict=True)
    return compare(
        base, tuned, binary=metrics[task].binary, clusters=clusters if group else None, comparisons=len(metrics)
    )


def _task(
    task: str,
    metric: Metric,
    comparison: Comparison,
    p_holm: float,
    files: RunFiles,
    examples: Sequence[Example],
    sides: tuple[str, str],
) -> TaskResult:
    from pipelines.report.summaries import flags, loose_scores

    mine = [example for example in examples if example.task == task]
    base = [line for line in files.base if line.task == task]
    tuned = [line for line in files.tuned if line.task == task]
    changes = [example.change for example in mine]
    losses = [(one.reference_nll, other.reference_nll) for one, other in zip(base, tuned, strict=True)]
    loose = loose_scores(mine, metric.label_form) if metric.single_label else None
    result = TaskResult(
        name=task,
        metric=metric.name,
        title=metric.title,
        unit=metric.unit,
        binary=metric.binary,
        single_label=metric.single_label,
        higher_is_better=metric.higher_is_better,
        n=comparison.n,
        base=comparison.base,
        tuned=comparison.tuned,
        delta=comparison.delta,
        ci95=comparison.ci95,
        p_value=comparison.p_value,
        p_holm=p_holm,
        better=changes.count("better"),
        worse=changes.count("worse"),
        same=changes.count("same"),
        unscored_base=sum(example.base_score is None for example in mine),
        unscored_tuned=sum(example.tuned_score is None for example in mine),
        rows_needed=comparison.rows_needed,
        loss=_loss(losses),
        loose=Sides(*loose) if loose else None,
        scoring=metric.note,
    )
    result.flags.extend(flags(result, base, tuned, sides, metric.label_form))
    if rows := files.manifest.data.get(task):
        result.flags.extend(rows.notes)
    return result


def _loss(pairs: Sequence[tuple[float | None, float | None]]) -> Loss | None:
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < len(pairs):
        return None
    import numpy as np

    base, tuned = np.asarray(known).T
    low, high = bootstrap_interval(tuned - base)
    return Loss(float(base.mean()), float(tuned.mean()), float((tuned - base).mean()), (float(low), float(high)))


def _some_answer(files: RunFiles, metrics: dict[str, Metric]) -> None:
    """A side that answers nothing at all, on no task, is a fault of the run and not a result."""
    for side, lines in (("base", files.base), ("tuned", files.tuned)):
        asked = [line for line in lines if metrics[line.task].scores_completions]
        if asked and not any(line.completion.strip() for line in asked):
            path = files.path / side / "completions.jsonl"
            mend = "look at config.yaml's generation and learning rate, delete this folder and run the job again"
            raise RunError(Problem(f"every completion is empty; {mend}", str(path)))
