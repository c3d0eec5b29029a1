"""New rows in, completions out, with the tuned model of a finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job, load_job
from pipelines.config.messages import did_you_mean
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.templates import MissingColumnError, fill_nonempty
from pipelines.errors import DataError, RunError
from pipelines.storage.files import os_errors_as_machine_error
from pipelines.storage.run_folder import Run
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    from pipelines.console.reporter import ConsoleReporter
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.evaluation.completions import LoadedModel

PREDICTION, FINISH_REASON = "prediction", "prediction_finish_reason"
"""The columns that `predict` adds."""
ROWS_AT_ONCE = 512
"""Rows answered, and then given out, together: what is lost where the process is killed."""


@dataclass(frozen=True)
class Question:
    """A row to be answered: its prompt filled in, before any chat template. `task` is None for a free prompt.

    `number` is the row's line in its file (of a Parquet file: its number from 1).
    """

    task: str | None
    prompt: str
    system: str | None
    max_new_tokens: int
    row: dict[str, Any]
    file: str
    number: int


def tuned_job(run: Run) -> Job:
    """The job of a run whose training is done. Raises RunError where it is not."""
    if "train" not in run.manifest["stages"]:
        raise RunError(f"{run.folder} holds no tuned model yet; finish it with: {run.command}")
    return load_job(run.path("config.yaml"))


def questions(job: Job, file: Path, task: str | None, run: str, raw: bool = False) -> list[Question]:
    """Each row of `file` in the template of its task: of `task`, of the job's only one, or of the row's column `task`. With
    `raw` each row is a free prompt: its column `prompt` as it stands.

    Raises DataError with file and row for every row that cannot be asked, RunError for a task that the run has not.
    """
    tasks = job.pipeline.tasks
    if raw and task is not None:
        raise RunError("--raw asks the column `prompt` without a task's template; leave out --task, or --raw")
    if task is not None and task not in tasks:
        near = did_you_mean(task, tasks)
        raise RunError(
            f"{run} has no task {task!r}; " + (f"did you mean {near}?" if near else f"it has {', '.join(tasks)}")
        )
    only = task or (next(iter(tasks)) if len(tasks) == 1 else None)
    found, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        try:
            if raw:
                sample = parse_sample_prompt(row, file, number)
                limit = sample.max_new_tokens or job.max_new_tokens()
                found.append(Question(None, sample.prompt, job.system_prompt(), limit, row, str(file), number))
                continue
            name = only or _task_of(row, tasks)
            prompt = _in_template(tasks[name].prompt, row)
            system, limit = job.system_prompt(name), job.max_new_tokens(name)
            found.append(Question(name, prompt, system, limit, row, str(file), number))
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return found


def _task_of(row: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    name = row.get("task")
    if name is None:
        raw = "; --raw asks the column `prompt` as it stands" if "prompt" in row else ""
        raise DataError(f"say which task it is: a column `task`, or --task ({', '.join(tasks)}){raw}")
    if not isinstance(name, str) or name not in tasks:
        near = did_you_mean(name, tasks) if isinstance(name, str) else None
        advice = f"did you mean {near}?" if near else f"the run has {', '.join(tasks)}"
        raise DataError(f"has the task {name!r:.60}; {advice}")
    return name


def _in_template(template: str, row: Mapping[str, Any]) -> str:
    try:
        return fill_nonempty(template, row, "prompt")
    except DataError as error:
        # The likeliest reason for a column that is missing beside a `prompt`.
        raw = (
            "; --raw asks the column `prompt` as it stands"
            if isinstance(error, MissingColumnError) and "prompt" in row
            else ""
        )
        raise DataError(f"{error}{raw}") from None


def check_lengths(prompts: PromptFormat, asked: Sequence[Question], context: int) -> list[list[int]]:
    """The tokens of each question in the model's own chat template. Raises DataError for those that leave no room for an answer
    in the model's `context` tokens; any other answer ends with the context at the latest, as in a run."""
    ids, errors = [prompt_tokens(prompts, one) for one in asked], RowErrors()
    for one, tokens in zip(asked, ids, strict=True):
        if len(tokens) >= context:
            room = f"leaves no room for an answer in the {context} tokens that the model can read"
            errors.add(one.file, one.number, f"its prompt {room}; shorten the row or drop it")
    errors.raise_if_any()
    return ids


def prompt_tokens(prompts: PromptFormat, question: Question) -> list[int]:
    """The tokens of a question, in the model's own chat template."""
    return prompts.encode_prompt(prompts.render_prompt(question.prompt, question.system))


def load_tuned(run: Run, job: Job) -> LoadedModel:
    """The base of the run with what was trained, as the run's own tuned pass loads it."""
    from pipelines.evaluation.completions import LoadedModel
    from pipelines.forgetting.continual import trained_from

    base = trained_from(job, run)
    return LoadedModel.from_folder(base, job.pipeline.chat_template, job.quantization).with_adapter(run.path("model"))


def tuned_format(run: Run, job: Job) -> tuple[PromptFormat, int]:
    """How the tuned model of a run writes prompts, and the tokens that it can read. Loads no model."""
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.forgetting.continual import trained_from
    from pipelines.modeling.base_models import context_length

    base = trained_from(job, run)
    return PromptFormat.from_folder(base, job.pipeline.chat_template), context_length(base)


def predict(
    run: Run, file: Path, task: str | None, reporter: ConsoleReporter, raw: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of `file` in their order, with PREDICTION and FINISH_REASON ("stop", or "length" where it was cut at max_new_tokens) added.

    Every row is checked at once, before the model is loaded: see `questions` and `check_lengths`; DataError as well for rows
    that have one of the two columns already. The iterator that comes back loads the model and gives rows as they are answered.
    """
    job = tuned_job(run)
    asked = questions(job, file, task, str(run.folder), raw)
    errors = RowErrors()
    for one in asked:
        for name in (PREDICTION, FINISH_REASON):
            if name in one.row:
                errors.add(
                    one.file, one.number, f"has a column `{name}`, where the answer goes; rename it, so that it is kept"
                )
    errors.raise_if_any()
    prompts, context = tuned_format(run, job)
    return _answered(run, job, asked, check_lengths(prompts, asked, context), reporter)


def _answered(
    run: Run, job: Job, asked: Sequence[Question], ids: Sequence[list[int]], reporter: ConsoleReporter
) -> Iterator[dict[str, Any]]:
    from pipelines.evaluation.completions import complete

    with reporter.status("Loading the tuned model"):
        loaded = load_tuned(run, job)
    for start in range(0, len(asked), ROWS_AT_ONCE):
        some = asked[start : start + ROWS_AT_ONCE]
        part = "" if len(some) == len(asked) else f", rows {start + 1} to {start + len(some)} of {len(asked)}"
        # A bar for each part: nothing is drawn while its rows are written.
        with reporter.progress(f"Completions{part}", len(some), "rows") as progress:
            bounds = [one.max_new_tokens for one in some]
            part_ids = ids[start : start + ROWS_AT_ONCE]
            answers = complete(loaded, part_ids, job.generation, bounds, progress, seed=job.pipeline.seed)
        for one, answer in zip(some, answers, strict=True):
            yield {**one.row, PREDICTION: answer.text, FINISH_REASON: answer.finish_reason}


def check_output(output: Path, file: Path) -> None:
    """Raises RunError for a place where predictions cannot or must not be written."""
    if output.is_dir():
        raise RunError(f"--output {output} is a folder; name a file")
    if output.resolve() == file.resolve():
        raise RunError(f"--output {output} is the file of the rows, which would be gone; name another")


def write_predictions(rows: Iterator[dict[str, Any]], output: Path, reporter: ConsoleReporter) -> None:
    """JSON Lines, row by row, under a name of their own until all are there. What is cut off keeps the rows that it has."""
    partial = output.with_name(output.name + ".partial")
    count = 0
    with os_errors_as_machine_error(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as lines:
                for row in rows:
                    lines.write(dump(row) + "\n")
                    count += 1
                lines.flush()
                os.fsync(lines.fileno())
            partial.replace(output)
        except BaseException:
            if count:
                reporter.warn(f"the {count} rows that were answered are in {partial}")
            else:
                partial.unlink(missing_ok=True)
            raise
