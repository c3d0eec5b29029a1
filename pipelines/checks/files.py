"""Checks of the files and templates that a config names, before any row is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.config.job import Job
from pipelines.config.retention_registry import HUB
from pipelines.data.format_detection import resolve_format
from pipelines.data.readers import read_notes
from pipelines.data.sources import DataSource, open_source
from pipelines.data.templates import template_columns
from pipelines.errors import DataError, Problem
from pipelines.evaluation.retention import configured_retention_evals


def referenced_files(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields every local data file that a job names, after the key that names it; those of tasks are `task_sources`."""
    pipeline = job.pipeline
    if pipeline.report.sample_prompts:
        yield ("pipeline", "report", "sample_prompts"), pipeline.report.sample_prompts
    for strategy, setting, file in pipeline.forgetting.row_files():
        yield ("pipeline", "forgetting", strategy, setting), file
    evals = pipeline.forgetting.evals
    for name, settings in evals.items() if isinstance(evals, dict) else ():
        if not settings.data.startswith(HUB):
            yield ("pipeline", "forgetting", "evals", name, "data"), settings.data


def task_sources(job: Job) -> dict[str, DataSource]:
    """The files of every task by its name. Raises DataError, located in the config, with every problem."""
    sources, problems = {}, []
    for name, task in job.pipeline.tasks.items():
        try:
            sources[name] = open_source(task.data)
        except DataError as error:
            problems.append(job.problem(f"pipeline.tasks.{name}.data: {error}", "pipeline", "tasks", name, "data"))
    if problems:
        raise DataError(problems)
    return sources


def source_notes(job: Job) -> list[str]:
    """What was found for each task's `data` and what was detected in its files, as sentences."""
    notes = []
    for name, source in task_sources(job).items():
        notes += [f"task {name}: {note}" for note in source.notes]
        detected_format = resolve_format(name, job.pipeline.tasks[name])[1]
        notes += [detected_format] if detected_format else []
        detected: dict[str, list[str]] = {}
        for file in source.files:
            for note in read_notes(file.path):
                detected.setdefault(note, []).append(file.name)
        for note, files in detected.items():
            others = f" and {len(files) - 1:,} other files" if len(files) > 1 else ""
            notes.append(f"task {name}: {files[0]}{others}: {note}")
    return notes


def check_data_files(job: Job) -> None:
    """Checks that every file exists and is one split of its task only, and that no prompt contains its completion.

    Raises DataError with every problem, located in the config.
    """
    problems: list[Problem] = []
    sources: dict[str, DataSource] = {}
    try:
        sources = task_sources(job)
    except DataError as error:
        problems += error.problems
    problems += [
        job.problem(f"{'.'.join(key)}: no such file: {file!r}; paths are relative to the working directory", *key)
        for key, file in referenced_files(job)
        if not Path(file).exists()
    ]
    for name, source in sources.items():
        if message := _shared_split_file(source):
            problems.append(job.problem(f"pipeline.tasks.{name}.data: {message}", "pipeline", "tasks", name, "data"))
    for key, prompt, completion in _templates(job):
        if message := _completion_in_prompt(prompt, completion):
            problems.append(job.problem(f"{'.'.join(key)}.prompt: {message}", *key, "prompt"))
    if problems:
        raise DataError(problems)


def _templates(job: Job) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The key in the config, the prompt and the completion of every task and retention eval that has them."""
    for name, task in job.pipeline.tasks.items():
        if task.prompt is not None and task.completion is not None and task.template == "column":
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


def _shared_split_file(source: DataSource) -> str | None:
    """A message if two splits of the task have a file in common."""
    splits: dict[Path, str | None] = {}
    for file in source.files:
        first = splits.setdefault(file.path.resolve(), file.split)
        if first != file.split:
            cause = f"{first} and {file.split} are the same file, {file.name!r}"
            advice = f"name another file, or write data: {file.name} to split its rows"
            return f"{cause}, so the model would be evaluated on rows it has seen; {advice}"
    return None
