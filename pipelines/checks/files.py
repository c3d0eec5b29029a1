"""Checks of the files and templates that a config names, before any row is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.config.job import Job
from pipelines.config.pipeline import Task
from pipelines.config.retention_registry import HUB
from pipelines.data.splits import SPLITS
from pipelines.data.templates import template_columns
from pipelines.errors import DataError
from pipelines.evaluation.retention import configured_retention_evals


def referenced_files(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields every local data file that a job names, after the key that names it."""
    pipeline = job.pipeline
    for name, task in pipeline.tasks.items():
        key = ("pipeline", "tasks", name, "data")
        if isinstance(task.data, str):
            yield key, task.data
        else:
            yield from (((*key, split), file) for split, file in task.data.model_dump().items() if file is not None)
    if pipeline.report.sample_prompts:
        yield ("pipeline", "report", "sample_prompts"), pipeline.report.sample_prompts
    for strategy, setting, file in pipeline.forgetting.row_files():
        yield ("pipeline", "forgetting", strategy, setting), file
    evals = pipeline.forgetting.evals
    for name, settings in evals.items() if isinstance(evals, dict) else ():
        if not settings.data.startswith(HUB):
            yield ("pipeline", "forgetting", "evals", name, "data"), settings.data


def check_data_files(job: Job) -> None:
    """Checks that every file exists and is one split of its task only, and that no prompt contains its completion.

    Raises DataError with every problem, located in the config.
    """
    problems = [
        job.problem(f"{'.'.join(key)}: no such file: {file!r}; paths are relative to the working directory", *key)
        for key, file in referenced_files(job)
        if not Path(file).exists()
    ]
    for name, task in job.pipeline.tasks.items():
        if message := _shared_split_file(task):
            problems.append(job.problem(f"pipeline.tasks.{name}.data: {message}", "pipeline", "tasks", name, "data"))
    for key, prompt, completion in _templates(job):
        if message := _completion_in_prompt(prompt, completion):
            problems.append(job.problem(f"{'.'.join(key)}.prompt: {message}", *key, "prompt"))
    if problems:
        raise DataError(problems)


def _templates(job: Job) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The key in the config, the prompt and the completion of every task and retention eval that has them."""
    for name, task in job.pipeline.tasks.items():
        yield ("pipeline", "tasks", name), task.prompt, task.completion
    for name, settings in configured_retention_evals(job.pipeline.forgetting).items():
        if templates := settings.templates:
            yield ("pipeline", "forgetting", "evals", name), templates["prompt"], templates["completion"]


def _completion_in_prompt(prompt: str, completion: str) -> str | None:
    """A message if every column of the completion is also in the prompt, so that the model can copy the answer."""
    columns = list(dict.fromkeys(template_columns(completion)))
    if not set(columns) <= set(template_columns(prompt)):
        return None
    listed = " and ".join(f"{{{name}}}" for name in columns)
    return f"it contains the answer: {listed}, of which the completion is made; remove {listed} from the prompt"


def _shared_split_file(task: Task) -> str | None:
    """A message if two splits of the task are the same file."""
    if isinstance(task.data, str):
        return None
    splits: dict[Path, str] = {}
    for split in SPLITS:
        file = getattr(task.data, split)
        if file is None:
            continue
        if (first := splits.setdefault(Path(file).resolve(), split)) != split:
            cause = (
                f"{first} and {split} are the same file, {file!r}, so the model would be evaluated on rows it has seen"
            )
            return f"{cause}; name another file, or write data: {file} to split its rows"
    return None
