"""Stage `eval_few_shot`: the base model with examples from the training rows in its prompt."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.config.task import FewShotSettings
from pipelines.console.plain_text import count
from pipelines.data.few_shot import FewShotPrompts, cut_at_separator, few_shot_prompts
from pipelines.data.few_shot_choice import FewShotTrial, choose_trial, few_shot_trials
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample, read_few_shot_candidates, read_test_examples
from pipelines.scoring.metric import metric_from_key, metric_key, reads_reference_loss
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import EvaluatorSession, completion_records
from pipelines.stages.inference_cache import few_shot_cache_path, store_completions
from pipelines.storage.files import atomic_dir
from pipelines.storage.records import CompletionRecord, FewShotTask, read_records, write_records

FOLDER = "few_shot"
"""The folder of the completions in a run."""


@dataclass(frozen=True)
class FewShotInputs:
    """What the prompts of a task are made of."""

    task: str
    settings: FewShotSettings
    rows: Sequence[TokenizedExample]
    candidates: Sequence[TokenizedExample]
    prompt_format: PromptFormat
    cluster_by: str | None

    def prompts(self, settings: FewShotSettings) -> FewShotPrompts:
        """The prompts of the test rows."""
        return few_shot_prompts(
            self.task, settings, self.rows, self.candidates, self.prompt_format, cluster_by=self.cluster_by
        )

    def trials(self) -> list[FewShotTrial]:
        """The prompts by which the number of examples is chosen."""
        return few_shot_trials(
            self.task, self.settings, self.rows, self.candidates, self.prompt_format, self.cluster_by
        )


def evaluate_few_shot(session: EvaluatorSession) -> None:
    """Writes `few_shot/completions.jsonl`, the completion of every test row after the examples of its task, and
    `few_shot/tasks.jsonl`, which says how many examples each task has.

    Tasks without examples have no completions. The base model is loaded only if the completions are not cached.
    """
    context = session.context
    with context.reporter.status("Examples for the prompts"):
        inputs = load_few_shot_inputs(context)
        tasks = [one.prompts(one.settings) for one in inputs]
        trials = {one.task: one.trials() for one in inputs}
    with atomic_dir(context.run.path(FOLDER)) as folder:
        has_rows = any(task.rows for task in tasks)
        prompts = [*tasks, *(trial.prompts for one in trials.values() for trial in one)]
        choosing = [name for name, one in trials.items() if one]
        cache_path = few_shot_cache_path(context, prompts, choosing) if has_rows else None
        if cache_path is not None and cache_path.exists():
            shutil.copytree(cache_path, folder)
            _report_notes(context, read_records(folder / "tasks.jsonl", FewShotTask))
            context.reporter.note("base completions with examples loaded from the cache")
            return
        tasks = _with_chosen_numbers(session, inputs, tasks, trials)
        _report_notes(context, [task.summary for task in tasks])
        write_records(folder / "tasks.jsonl", [task.summary for task in tasks])
        title = "Base completions with examples"
        write_records(folder / "completions.jsonl", [one for part in _records(session, tasks, title) for one in part])
        if cache_path is not None:
            store_completions(context, folder, cache_path)


def load_few_shot_inputs(context: StageContext) -> list[FewShotInputs]:
    """The rows of every task that is to have examples, from the prepared rows."""
    job, data = context.job, context.run.path("data")
    wanted = {name: job.pipeline.few_shot(task) for name, task in job.pipeline.tasks.items()}
    if not any(wanted.values()):
        return []
    rows, candidates = read_test_examples(data, job), read_few_shot_candidates(data, job)
    return [
        FewShotInputs(
            name,
            settings,
            [row for row in rows if row.example.task == name],
            [row for row in candidates if row.example.task == name],
            context.prompt_format,
            job.pipeline.tasks[name].cluster_by,
        )
        for name, settings in wanted.items()
        if settings
    ]


def _report_notes(context: StageContext, tasks: Iterable[FewShotTask]) -> None:
    for task in tasks:
        for note in task.notes:
            context.reporter.note(f"task {task.task}: {note.rstrip('.')}")


def _with_chosen_numbers(
    session: EvaluatorSession,
    inputs: Sequence[FewShotInputs],
    tasks: Sequence[FewShotPrompts],
    trials: dict[str, list[FewShotTrial]],
) -> list[FewShotPrompts]:
    """The prompts of the tasks, of a task with trials those with the number of examples that scores best."""
    asked = [trial for one in trials.values() for trial in one]
    records = _records(session, [trial.prompts for trial in asked], "Base completions to choose the number of examples")
    chosen = []
    for one, prompts in zip(inputs, tasks, strict=True):
        if trials[one.task]:
            task = session.context.job.pipeline.tasks[one.task]
            metric = metric_from_key(metric_key(task.metric, task.normalize))
            scores = {
                trial.k: [metric.score(record.model_dump()).value for record in part]
                for trial, part in zip(asked, records, strict=True)
                if trial.task == one.task
            }
            best, note = choose_trial(trials[one.task], scores, higher_is_better=metric.higher_is_better)
            prompts = _with_note(one.prompts(one.settings.with_k(best.k)), note)
        elif one.settings.choices and prompts.summary.k:
            given = count(prompts.summary.k, "example")
            note = f"{given} in the prompt: too few training rows, or too short a context, to choose their number."
            prompts = _with_note(prompts, note)
        chosen.append(prompts)
    return chosen


def _with_note(prompts: FewShotPrompts, note: str) -> FewShotPrompts:
    notes = [*prompts.summary.notes, note]
    return replace(prompts, summary=prompts.summary.model_copy(update={"notes": notes}))


def _records(session: EvaluatorSession, parts: Sequence[FewShotPrompts], title: str) -> list[list[CompletionRecord]]:
    """The completions of the rows of each part, in one pass of the model."""
    rows = [row for part in parts for row in part.rows]
    if not rows:
        return [[] for _ in parts]
    # Nothing else in the report reads the losses of references after examples.
    tasks = session.context.job.pipeline.tasks
    unscored = {name for name, task in tasks.items() if not reads_reference_loss(task.metric)}
    records = iter(completion_records(session, rows, title, unscored))
    return [[cut_at_separator(next(records), part.separator) for _ in part.rows] for part in parts]
