"""Stage `eval_few_shot`: the base model with examples from the training rows in its prompt."""

from __future__ import annotations

import shutil

from pipelines.data.few_shot import FewShotPrompts, cut_at_separator, few_shot_prompts
from pipelines.data.tokenize_rows import read_few_shot_candidates, read_test_examples
from pipelines.scoring.metric import reads_reference_loss
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import EvaluatorSession, completion_records
from pipelines.stages.inference_cache import few_shot_cache_path, store_completions
from pipelines.storage.files import atomic_dir
from pipelines.storage.records import write_records

FOLDER = "few_shot"
"""The folder of the completions in a run."""


def evaluate_few_shot(session: EvaluatorSession) -> None:
    """Writes `few_shot/completions.jsonl`, the completion of every test row after the examples of its task, and
    `few_shot/tasks.jsonl`, which says how many examples each task has.

    Tasks without examples have no completions. The base model is loaded only if the completions are not cached.
    """
    context = session.context
    with context.reporter.status("Examples for the prompts"):
        tasks = load_few_shot_prompts(context)
    for task in tasks:
        for note in task.summary.notes:
            context.reporter.note(f"task {task.summary.task}: {note.rstrip('.')}")
    rows = [row for task in tasks for row in task.rows]
    separators = [task.separator for task in tasks for _ in task.rows]
    with atomic_dir(context.run.path(FOLDER)) as folder:
        cache_path = few_shot_cache_path(context, tasks) if rows else None
        if cache_path is not None and cache_path.exists():
            shutil.copytree(cache_path, folder)
            context.reporter.note("base completions with examples loaded from the cache")
            return
        write_records(folder / "tasks.jsonl", [task.summary for task in tasks])
        # Nothing else in the report reads the losses of references after examples.
        unscored = {name for name, task in context.job.pipeline.tasks.items() if not reads_reference_loss(task.metric)}
        records = completion_records(session, rows, "Base completions with examples", unscored) if rows else []
        cut = [cut_at_separator(record, separator) for record, separator in zip(records, separators, strict=True)]
        write_records(folder / "completions.jsonl", cut)
        if cache_path is not None:
            store_completions(context, folder, cache_path)


def load_few_shot_prompts(context: StageContext) -> list[FewShotPrompts]:
    """The prompts with examples of every task that is to have some, from the prepared rows."""
    job, data = context.job, context.run.path("data")
    wanted = {name: job.pipeline.few_shot(task) for name, task in job.pipeline.tasks.items()}
    if not any(wanted.values()):
        return []
    rows, candidates = read_test_examples(data, job), read_few_shot_candidates(data, job)
    return [
        few_shot_prompts(
            name,
            settings,
            [row for row in rows if row.example.task == name],
            [row for row in candidates if row.example.task == name],
            context.prompt_format,
            cluster_by=job.pipeline.tasks[name].cluster_by,
        )
        for name, settings in wanted.items()
        if settings
    ]
