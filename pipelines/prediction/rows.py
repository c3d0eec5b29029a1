"""New rows as prompts: the templates of a run's tasks filled, with the limit of each completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.config.job import Job
from pipelines.config.messages import did_you_mean
from pipelines.data.examples import Example
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.sources import DataFile
from pipelines.data.templates import MissingColumnError
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.errors import DataError, RunError
from pipelines.inference.prompts import fill_prompt, with_limit

USE_RAW = "; --raw uses the column `prompt` without a template"


SourceRow = tuple[str, int, dict[str, Any]]
"""The name of a file, the line on which the row begins (of a file without lines: its index from 1), and the row."""


class PromptRows:
    """Turns rows into examples without a completion, each with its token limit.

    A row fills the template of its task: `task`, or the job's only one, or that in the row's column `task`. With `raw`
    its column `prompt` is the prompt, and the example has no task. `fields` are all columns of the row.
    """

    def __init__(
        self,
        job: Job,
        task: str | None,
        run: str,
        raw: bool = False,
        manifest: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`run` is its name in messages. `manifest` is that of the run, which says whether prompts ask for reasoning.

        Raises RunError for a task that the run does not have.
        """
        tasks = job.pipeline.tasks
        if raw and task is not None:
            raise RunError("--raw uses the column `prompt` without a task's template; remove --task or --raw")
        if task is not None and task not in tasks:
            similar = did_you_mean(task, tasks)
            advice = f"did you mean {similar}?" if similar else f"it has {', '.join(tasks)}"
            raise RunError(f"{run} has no task {task!r}; {advice}")
        self.job, self.raw, self.manifest = job, raw, manifest
        self.only_task = task or (next(iter(tasks)) if len(tasks) == 1 else None)

    def example(self, row: Mapping[str, Any], file: str, number: int) -> Example:
        """The example of one row, which begins on line `number` of `file`.

        Raises DataError, without a location, for a row that cannot be used.
        """
        if self.raw:
            sample = parse_sample_prompt(row, Path(file), number, self.job.system_prompt())
            return with_limit(sample, self.job, self.manifest)
        name = self.only_task or _task_of(row, self.job.pipeline.tasks)
        example = Example(
            **_fill_prompt(self.job, name, row),
            task=name,
            file=file,
            row_number=number,
            fields=row,
        )
        return with_limit(example, self.job, self.manifest)

    def examples(self, rows: Iterable[SourceRow], errors: RowErrors) -> Iterator[Example]:
        """Yields the examples of rows as they are read. A row that cannot be used is added to `errors` instead."""
        for file, number, row in rows:
            try:
                yield self.example(row, file, number)
            except DataError as error:
                errors.add(file, number, str(error))


def source_rows(files: Iterable[DataFile]) -> Iterator[SourceRow]:
    """Yields the rows of files as they are read. Raises DataError for a file that cannot be read any further."""
    for file in files:
        for number, row in numbered_rows(file.path):
            yield file.name, number, row


def load_prompts(
    job: Job,
    file: Path,
    task: str | None,
    run: str,
    raw: bool = False,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> list[Example]:
    """All rows of `file` as examples without a completion, see `PromptRows`.

    Raises DataError with every row that cannot be used, RunError for a task that the run does not have.
    """
    errors = RowErrors()
    examples = list(
        PromptRows(job, task, run, raw, manifest).examples(source_rows([DataFile(file, str(file))]), errors)
    )
    errors.raise_if_any()
    return examples


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
    """See `fill_prompt`."""
    try:
        return fill_prompt(job, name, row)
    except MissingColumnError as error:
        # A row with a column `prompt` most likely needs no template.
        raise DataError(f"{error}{USE_RAW if 'prompt' in row else ''}") from None


def check_prompt_lengths(
    rows: Iterable[TokenizedExample], context_length: int, errors: RowErrors | None = None
) -> None:
    """Raises DataError with every row whose prompt leaves no token of the context for a completion; with `errors`,
    adds them to it instead."""
    too_long = RowErrors() if errors is None else errors
    for row in rows:
        if len(row.prompt_ids) >= context_length:
            message = f"the prompt leaves no room for a completion in the model's context of {context_length} tokens"
            too_long.add(row.example.file, row.example.row_number, f"{message}; shorten or drop the row")
    if errors is None:
        too_long.raise_if_any()
