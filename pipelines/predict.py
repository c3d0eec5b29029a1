"""New rows in, completions out, with the tuned model of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.activity import doing
from pipelines.config import Job, load_job
from pipelines.errors import DataError, Problem, RunError
from pipelines.row_files import read_rows
from pipelines.runs import Run
from pipelines.tasks import fill

if TYPE_CHECKING:
    from pipelines.completions import LoadedModel
    from pipelines.screen import Screen


@dataclass(frozen=True)
class Question:
    """A row to be answered: its prompt filled in, before any chat template. `task` is None for a free prompt."""

    task: str | None
    prompt: str
    system: str | None
    max_new_tokens: int
    row: dict[str, Any]


def tuned_job(run: Run) -> Job:
    """The job of a run whose training is done. Raises RunError where it is not."""
    if "train" not in run.manifest["stages"]:
        raise RunError(f"{run.folder} holds no tuned model yet; finish it with: {run.command}")
    return load_job(run.path("config.yaml"))


def questions(job: Job, file: Path, task: str | None, run: str) -> list[Question]:
    """Each row of `file` is one of `task`, of its own `task` column, or, where it has a `prompt` and no task, a
    free prompt. Raises DataError with file and row, RunError for a task that the run has not."""
    tasks = job.pipeline.tasks
    if task is not None and task not in tasks:
        raise RunError(f"{run} has no task {task!r}; it has {', '.join(tasks)}")
    only = next(iter(tasks)) if len(tasks) == 1 else None
    default = int(job.ludwig["generation"]["max_new_tokens"])
    found = []
    for number, row in enumerate(read_rows(file), start=1):
        name = task or row.get("task") or (None if "prompt" in row else only)
        if name is None and "prompt" not in row:
            raise DataError(Problem(f"say which task it is: a column `task`, or --task ({', '.join(tasks)})", str(file), number))
        if name is not None and name not in tasks:
            raise DataError(Problem(f"has the task {name!r}; the run has {', '.join(tasks)}", str(file), number))
        try:
            prompt = fill(tasks[name].prompt, row) if name else str(row["prompt"])
        except DataError as error:
            raise DataError(Problem(str(error), str(file), number)) from None
        system = tasks[name].system if name and tasks[name].system is not None else job.pipeline.system
        found.append(Question(name, prompt, system, int((tasks[name].max_new_tokens if name else None) or default), row))
    return found


def load_tuned(run: Run, job: Job) -> LoadedModel:
    """The base of the run with what was trained, as the run's own tuned pass loads it."""
    from pipelines.completions import LoadedModel, quantization_of
    from pipelines.forgetting.sequence import starting_model

    base = starting_model(job, run)
    return LoadedModel.base(base, job.pipeline.chat_template, quantization_of(job)).attach(run.path("model"))


def predict(run: Run, file: Path, task: str | None, screen: Screen) -> list[dict[str, Any]]:
    """The rows of `file` with `completion` and `finished` added. See `questions` for what a row may be."""
    from pipelines.completions import complete

    job = tuned_job(run)
    with doing(f"reading {file}"):
        asked = questions(job, file, task, str(run.folder))
    with screen.working("Loading the tuned model"):
        loaded = load_tuned(run, job)
    with doing("reading the prompts as tokens"):
        ids = prompt_ids(loaded, asked)
    with screen.bar("Completions", len(asked), "rows") as progress:
        answers = complete(
            loaded, ids, job.ludwig["generation"], [one.max_new_tokens for one in asked], progress, seed=job.pipeline.seed
        )
    return [
        {**one.row, "completion": answer.text, "finished": answer.finished}
        for one, answer in zip(asked, answers, strict=True)
    ]


def prompt_ids(loaded: LoadedModel, asked: Sequence[Question]) -> list[list[int]]:
    """The tokens of each question, in the model's own chat template."""
    return [loaded.prompts.prompt_ids(loaded.prompts.prompt_text(one.prompt, one.system)) for one in asked]
