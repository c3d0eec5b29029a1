"""`alfine init`: a job for a data file."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import click

from pipelines.authoring.job import Choices, Draft, write_job
from pipelines.authoring.kinds import find_kind
from pipelines.authoring.questions import ask
from pipelines.authoring.roles import find_roles
from pipelines.authoring.sample import Sample, read_sample
from pipelines.checks.job import check_job
from pipelines.config.job import Job, job_from_document
from pipelines.config.yaml_parser import parse_yaml
from pipelines.console.plain_text import printable
from pipelines.errors import AlfineError, ConfigError
from pipelines.importing.yaml_writer import editor_line, to_yaml
from pipelines.modeling.base_models import PACKAGED_MODELS, check_base_model, local_folder
from pipelines.modeling.module_names import check_module_names
from pipelines.storage.files import os_errors_as_machine_error, write_text

MAX_LISTED = 12
"""Columns that the summary names."""


@click.command()
@click.argument("data")
@click.option("--task", metavar="NAME", help="Name of the task; that of the file if missing.")
@click.option("--output", type=click.Path(path_type=Path), help="File of the job: NAME.yaml if missing; - prints it.")
@click.option("--base-model", default=next(iter(PACKAGED_MODELS)), show_default=True, help="Model that is tuned.")
@click.option("--interactive", is_flag=True, help="Ask for columns, kind, metric and names; Enter accepts the guess.")
def init(data: str, task: str | None, output: Path | None, base_model: str, interactive: bool) -> None:
    """Write a job for a data file: DATA is a file, a folder, a pattern or hub:OWNER/NAME.

    Finds the columns of prompt and answer, the kind of task, metric, split and lengths, and says what it assumed.

    \b
    Example:
      alfine init tickets.csv
    """
    name = task_name(data) if task is None else _checked_name(task)
    output = Path(f"{name}.yaml") if output is None else output
    is_printed = str(output) == "-"
    if not is_printed:
        _check_new(output)
    check_base_model(base_model)
    sample = read_sample(data)
    roles = find_roles(sample)
    kind, labels, notes = find_kind(roles)
    choices = Choices(name, base_model, roles, kind, labels, notes=tuple(notes))
    if interactive:
        choices = ask(sample, choices)
    draft = write_job(sample, choices)
    text = _yaml(draft, sample, None if is_printed else output)
    if not _has_target_modules(_load(text, output)):
        del draft.config["adapter"]["target_modules"]
        draft.notes.append("the modules that are adapted are those that PEFT chooses for this model")
        text = _yaml(draft, sample, None if is_printed else output)
    job = _load(text, output)
    draft.notes += _check(job, sample, str(output))
    _print_summary(draft, sample)
    if is_printed:
        click.echo(text, nl=False)
        return
    _check_new(output)  # again: the questions may have taken a while
    with os_errors_as_machine_error(output.parent):
        write_text(output, text)
    click.echo(f"written: {output}; next:", err=True)
    for command in (f"check {output}", f"plan {output}", f"run {output} --name first"):
        click.echo(f"  alfine {command}", err=True)


def task_name(data: str) -> str:
    """The name of a task for a data file: that of the file without its suffixes."""
    name = data.rstrip("/").removeprefix("hub:").partition("@")[0].partition(":")[0].rpartition("/")[2]
    parts = [part for part in re.split(r"[^A-Za-z0-9_-]+", name.partition(".")[0]) if part.strip("-_")]
    return "_".join(parts)[:60] or "task"


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"--task {name!r}: the name of a task has letters, digits, _ and -")
    return name


def _check_new(output: Path) -> None:
    """Raises ConfigError for a file that exists, MachineError for a folder that cannot be written to."""
    with os_errors_as_machine_error(output):
        if output.exists() or output.is_symlink():
            raise ConfigError(f"{output} exists already and is not overwritten; name another file with --output")
        folder = next(parent for parent in output.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise ConfigError(f"--output {output}: {folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _yaml(draft: Draft, sample: Sample, output: Path | None) -> str:
    where = output or "FILE"
    header = [f"Written by alfine init from {sample.data}: {_num_rows(sample)}."]
    header += [f"  alfine check {where}", f"  alfine run {where} --name first"]
    return to_yaml(draft.config, draft.comments, [*header, *editor_line(output)])


def _load(text: str, output: Path) -> Job:
    """The job as `alfine check` would load it."""
    return job_from_document(parse_yaml(text, str(output)), output)


def _has_target_modules(job: Job) -> bool:
    """Whether the base model has the modules that the job names. True if its files are not on this machine."""
    folder = local_folder(job.base_model)
    try:
        if folder is not None:
            check_module_names(job, folder)
    except ConfigError:
        return False
    return True


def _check(job: Job, sample: Sample, output: str) -> list[str]:
    """The warnings of `alfine check`, unless the rows are too many to be read again. Raises AlfineError.

    Lines of the config are left out: it is not written yet.
    """
    if not sample.is_complete:
        return []
    try:
        return [problem.message for problem in check_job(job).warnings]
    except AlfineError as error:
        located = [
            replace(problem, file=None, line=None) if problem.file == output else problem for problem in error.problems
        ]
        raise type(error)(located) from None


def _print_summary(draft: Draft, sample: Sample) -> None:
    click.echo(printable(f"{sample.data}: {_num_rows(sample)} with the columns {_columns(sample)}"), err=True)
    width = max(len(word) for word, _ in draft.summary)
    for word, text in draft.summary:
        click.echo(printable(f"  {word.ljust(width)}  {text}"), err=True)
    for note in dict.fromkeys([*sample.notes, *draft.notes]):
        click.echo(printable(f"note: {note}"), err=True)


def _columns(sample: Sample) -> str:
    more = f" and {len(sample.columns) - MAX_LISTED:,} more" if len(sample.columns) > MAX_LISTED else ""
    return ", ".join(sample.columns[:MAX_LISTED]) + more


def _num_rows(sample: Sample) -> str:
    return f"{len(sample.rows):,} rows" if sample.is_complete else f"the first {len(sample.rows):,} rows"
