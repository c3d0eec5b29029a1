"""Detection of row formats: what the columns of the first row say about a task that says nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from pipelines.config.job import Job
from pipelines.config.task import Task
from pipelines.data.readers import numbered_rows
from pipelines.data.sources import open_source
from pipelines.data.templates import SPLIT_COLUMN
from pipelines.errors import DataError, Problem

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_TEXT_COLUMNS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("question", "answer"),
)
"""Columns of a prompt and its completion in published data sets, the most specific names first."""
_RATINGS = ("label", "kto_tag")
"""Columns that say whether an answer is good, in data for KTO."""
_PREFERENCES = ("chosen", "rejected")
"""The first words of the columns of preferences."""


def resolve_format(name: str, task: Task) -> tuple[Task, str | None]:
    """The task with the format of its rows, and a note that says what was detected, None if the config says it.

    Reads the first row of a task without `prompt` and `messages`. Raises DataError for columns that are not known.
    """
    if task.prompt is not None or task.messages is not None:
        return task, None
    file = open_source(task.data).files[0]
    for row_number, fields in islice(numbered_rows(file.path), 1):
        try:
            keys, note = detect_format(fields)
        except DataError as error:
            raise DataError(Problem(f"task {name}: {error}", file.name, row_number)) from None
        return task.model_copy(update=keys), f"task {name}: {note}"
    return task, None


def resolve_formats(job: Job) -> Job:
    """The job whose tasks all say the format of their rows. Raises DataError as `resolve_format` does."""
    tasks = {name: resolve_format(name, task)[0] for name, task in job.pipeline.tasks.items()}
    return replace(job, pipeline=job.pipeline.model_copy(update={"tasks": tasks}))


def detect_format(fields: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The keys of a task whose rows have these columns, and what was detected, as a sentence.

    Raises DataError, without a location, if the columns are not those of a known format.
    """
    _refuse_other_training(fields)
    rating = next((column for column in _RATINGS if isinstance(fields.get(column), bool)), None)
    rated = f"; the column {rating} has no effect: drop the rows that it rates as false" if rating else ""
    for column in MESSAGE_COLUMNS:
        if column in fields:
            keys: dict[str, Any] = {"messages": column}
            if "tools" in fields:
                keys["tools"] = "tools"
            return keys, f"rows are conversations in the column {column}{rated}"
    for prompt, completion in _TEXT_COLUMNS:
        if prompt in fields and completion in fields:
            text_keys, note = _text_keys(fields, prompt, completion)
            return text_keys, note + rated
    names = [name for name in fields if name != SPLIT_COLUMN]
    example = next((name for name in names if not isinstance(fields[name], list | dict)), "question")
    raise DataError(
        f"the task says neither prompt and completion nor messages, and the columns ({', '.join(names)}) are of no "
        f'known format; write prompt: "{{{example}}}" and completion: "{{…}}", or messages: COLUMN'
    )


def _refuse_other_training(fields: Mapping[str, Any]) -> None:
    """Raises DataError for rows of another kind of training than on prompts and completions."""
    chosen, rejected = (next((name for name in fields if name.startswith(kind)), None) for kind in _PREFERENCES)
    if chosen and rejected:
        raise DataError(
            f"the rows are preferences (columns {chosen} and {rejected}), which alfine does not train on; write rows "
            "whose completion, or whose last message, is the chosen answer"
        )
    if set(fields) - {SPLIT_COLUMN} == {"text"}:
        raise DataError(
            "the rows are texts without a prompt (column text), as for pretraining; alfine trains on prompts and "
            "completions: write them into columns of their own"
        )
    if isinstance(fields.get("segments"), list):
        raise DataError(
            "the rows have segments (axolotl's input_output); write them as messages, with train: false in those that "
            "are not trained"
        )


def _text_keys(fields: Mapping[str, Any], prompt: str, completion: str) -> tuple[dict[str, Any], str]:
    note = f"rows have their prompt in the column {prompt} and their completion in {completion}"
    if isinstance(fields[prompt], list):
        keys = {"prompt": f"{{{prompt}}}", "completion": f"{{{completion}}}"}
        return (keys | {"tools": "tools"} if "tools" in fields else keys), f"{note}, as lists of messages"
    if prompt != "instruction":
        return {"prompt": f"{{{prompt}}}", "completion": f"{{{completion}}}"}, note
    keys = {"template": "jinja", "prompt": "{{ instruction }}", "completion": f"{{{{ {completion} }}}}"}
    if "input" in fields:
        keys["prompt"] += "{% if input %}\n\n{{ input }}{% endif %}"
        note += ", with the input after a blank line if there is one"
    if "system" in fields:
        keys["system"] = "{{ system or '' }}"
        note += ", and their system turn in the column system"
    if "history" in fields:
        keys["history"] = "history"
        note += ", after the turns in the column history"
    return keys, note
