"""New rows as prompts: the templates of a run's tasks filled, with the limit of each completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.config.job import Job
from pipelines.config.messages import did_you_mean
from pipelines.data.examples import Example
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.row_formats import fill_row
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.templates import MissingColumnError
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.errors import DataError, RunError
from pipelines.storage.records import prompts_for_reasoning

USE_RAW = "; --raw uses the column `prompt` without a template"


def load_prompts(
    job: Job,
    file: Path,
    task: str | None,
    run: str,
    raw: bool = False,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> list[Example]:
    """The rows of `file` as examples without a completion, each with its token limit.

    A row fills the template of its task: `task`, or the job's only one, or that in the row's column `task`. With `raw`
    its column `prompt` is the prompt, and the example has no task. `fields` are all columns of the row. `manifest` is
    that of the run, which says whether prompts ask for reasoning.

    Raises DataError with every row that cannot be used, RunError for a task that the run does not have.
    """
    tasks = job.pipeline.tasks
    if raw and task is not None:
        raise RunError("--raw uses the column `prompt` without a task's template; remove --task or --raw")
    if task is not None and task not in tasks:
        similar = did_you_mean(task, tasks)
        advice = f"did you mean {similar}?" if similar else f"it has {', '.join(tasks)}"
        raise RunError(f"{run} has no task {task!r}; {advice}")
    only_task = task or (next(iter(tasks)) if len(tasks) == 1 else None)
    examples, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        try:
            if raw:
                sample = parse_sample_prompt(row, file, number, job.system_prompt())
                examples.append(_with_limits(sample, job, manifest))
                continue
            name = only_task or _task_of(row, tasks)
            examples.append(
                _with_limits(
                    Example(
                        **_fill_prompt(job, name, row),
                        task=name,
                        file=str(file),
                        row_number=number,
                        fields=row,
                        template_kwargs=job.chat_template_kwargs(name),
                    ),
                    job,
                    manifest,
                )
            )
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return examples


def _with_limits(example: Example, job: Job, manifest: Mapping[str, Any]) -> Example:
    """The example, which asks for reasoning if the training rows of its task had some, with the limit of its
    completion."""
    task = example.task or None
    asked = prompts_for_reasoning(manifest, task)
    limit = job.completion_limit(task, with_reasoning=asked, max_new_tokens=example.max_new_tokens)
    turns = None if example.turns is None else replace(example.turns, with_reasoning=asked)
    reasoning = "" if asked and turns is None else None
    return replace(example, reasoning=reasoning, turns=turns, max_new_tokens=limit)


def _task_of(row: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    name = row.get("task")
    if name is None:
        hint = USE_RAW if "prompt" in row else ""
        raise DataError(f"the task is missing: add a column `task`, or --task ({', '.join(tasks)}){hint}")
    if not isinstance(name, str) or name not in tasks:
        similar = did_you_mean(name, tasks) if isinstance(name, str) else None
        advice = f"did you mean {similar}?" if similar else f"the run has {', '.join(tasks)}"
        raise DataError(f"unknown task {name!r:.60}; {advice}")
    return name


def _fill_prompt(job: Job, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the system turn and the conversation of a row, as keywords of an Example."""
    try:
        (filled,) = fill_row(job.pipeline.tasks[name], row, job.system_prompt(name), needs_answer=False)
    except MissingColumnError as error:
        # A row with a column `prompt` most likely needs no template.
        raise DataError(f"{error}{USE_RAW if 'prompt' in row else ''}") from None
    kwargs = job.chat_template_kwargs(name)
    turns = None if filled.turns is None else replace(filled.turns, template_kwargs=kwargs)
    return {"prompt": filled.prompt, "system": filled.system, "turns": turns}


def check_prompt_lengths(rows: Sequence[TokenizedExample], context_length: int) -> None:
    """Raises DataError with every row whose prompt leaves no token of the context for a completion."""
    errors = RowErrors()
    for row in rows:
        if len(row.prompt_ids) >= context_length:
            message = f"the prompt leaves no room for a completion in the model's context of {context_length} tokens"
            errors.add(row.example.file, row.example.row_number, f"{message}; shorten or drop the row")
    errors.raise_if_any()
