"""Two models on the same prompts: a folder like a run's, which the report reads as it reads a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.activity import doing
from pipelines.config import Job, Task
from pipelines.errors import DataError, Problem, RunError
from pipelines.predict import Question, load_tuned, prompt_ids, questions, tuned_job
from pipelines.runs import (
    Run,
    hardware,
    machine_errors,
    read_jsonl,
    replace_folder,
    versions,
    write_json,
    write_jsonl,
    write_text,
)

if TYPE_CHECKING:
    from pipelines.completions import Completion, LoadedModel
    from pipelines.screen import Screen

REFERENCE = "reference"
"""The column of a prompts file that holds the right answer of a free prompt."""
FREE = "prompts"
"""The task of free prompts that have a reference."""


@dataclass(frozen=True)
class Side:
    """One of the two: a run (its tuned model), or any model that `base_model` can name."""

    name: str
    place: str
    run: Run | None
    job: Job | None
    model: Path | None
    """The folder of a plain model."""

    @classmethod
    def of(cls, place: str) -> Side:
        """Raises RunError or ModelError for what is neither."""
        from pipelines.models import find_base_model

        folder = Path(place)
        if (folder / "manifest.json").is_file():
            run = Run.open(folder)
            return cls(run.name, place, run, tuned_job(run), None)
        if "/" in place and folder.parent.is_dir() and not folder.exists():
            raise RunError(f"{place}: there is no such folder")
        return cls(folder.name, place, None, None, find_base_model(place))

    def load(self) -> LoadedModel:
        from pipelines.completions import LoadedModel

        if self.model is not None:
            return LoadedModel.base(self.model, None)
        assert self.run is not None and self.job is not None
        return load_tuned(self.run, self.job)


@dataclass(frozen=True)
class Asked:
    """A question with what the report wants to know beside it."""

    question: Question
    number: int
    """Of the row in its file, from 1."""
    reference: str | None
    title: str | None = None


def compare_models(
    places: tuple[str, str], prompts: Path | None, task: str | None, metric: str, folder: Path, command: str, screen: Screen
) -> Path:
    """Puts the answers of both into `folder` and returns it.

    Without `prompts` the test rows of the first run are asked; two runs that both have answered them are not asked
    again. Raises RunError where no side is a run that could say what to ask, or where two runs share no test row.
    """
    with screen.working("Models"):
        one, two = Side.of(places[0]), Side.of(places[1])
    if one.name == two.name:
        one, two = replace(one, name=one.place), replace(two, name=two.place)
    job = one.job or two.job
    if prompts is None and job is None:
        raise RunError("two models that are no runs need prompts to be compared on; add --prompts FILE")
    with machine_errors(folder):
        aside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        if prompts is None and one.run is not None and two.run is not None:
            tasks = _stored_answers(one.run, two.run, aside)
        else:
            tasks = _new_answers(one, two, job, prompts, task, metric, aside, screen)
        _describe(one, two, job, tasks, folder, aside, command)
        replace_folder(aside, folder)
    return folder


def _stored_answers(one: Run, two: Run, folder: Path) -> dict[str, dict[str, Any]]:
    """The tuned answers that both runs have given to the same prompts. Returns the tasks that they share."""

    def answers(run: Run) -> dict[tuple[str, str, str], dict[str, Any]]:
        lines = read_jsonl(run.path("tuned", "completions.jsonl"))
        return {(line["task"], line["prompt"], line["reference"]): line for line in lines}

    left, right = answers(one), answers(two)
    shared = [key for key in left if key in right]
    if not shared:
        raise RunError(f"{one.folder} and {two.folder} share no test row; give a file of prompts with --prompts FILE")
    write_jsonl(folder / "base" / "completions.jsonl", [left[key] for key in shared])
    write_jsonl(folder / "tuned" / "completions.jsonl", [{**right[key], "row": left[key]["row"]} for key in shared])
    tasks = tuned_job(one).pipeline.tasks
    return {name: _scoring(tasks[name]) for name in dict.fromkeys(key[0] for key in shared)}


def _scoring(task: Task) -> dict[str, Any]:
    """What the report must know of a task."""
    return {"metric": task.metric, "normalize": task.normalize, "group": task.group}


def _new_answers(
    one: Side, two: Side, job: Job | None, prompts: Path | None, task: str | None, metric: str, folder: Path, screen: Screen
) -> dict[str, dict[str, Any]]:
    if prompts is None:
        owner = one.run or two.run
        assert owner is not None and job is not None
        asked = _test_rows(owner, job)
    else:
        asked = _rows_of_file(job, prompts, task)
    generation = job.ludwig["generation"] if job else {"do_sample": False, "max_new_tokens": 128}
    left, right = (_answer(side, asked, generation, screen) for side in (one, two))
    # A loss per token compares two models only where both cut the references into the same tokens.
    same_tokens = all(one.reference_ids == other.reference_ids for one, other in zip(left, right, strict=True))
    for answers, which in ((left, "base"), (right, "tuned")):
        _write(asked, answers, folder / which, with_losses=same_tokens)
    named = dict.fromkeys(one.question.task or FREE for one in asked if one.reference is not None)
    known = job.pipeline.tasks if job else {}
    return {
        name: _scoring(known[name]) if name in known else {"metric": metric, "group": None} for name in named
    }


def _test_rows(run: Run, job: Job) -> list[Asked]:
    from pipelines.prepare import read_table

    default = int(job.ludwig["generation"]["max_new_tokens"])
    asked = []
    for row in read_table(run.path("data"), "test"):
        task = job.pipeline.tasks[row["task"]]
        system = task.system if task.system is not None else job.pipeline.system
        question = Question(row["task"], row["prompt"], system, task.max_new_tokens or default, row["fields"])
        asked.append(Asked(question, row["row"], row["completion"]))
    return asked


def _rows_of_file(job: Job | None, file: Path, task: str | None) -> list[Asked]:
    """Rows of a task of the run (its columns, the reference by its template) or free prompts with or without one."""
    from pipelines.row_files import read_rows
    from pipelines.tasks import fill

    if job is None:
        asked = []
        for number, row in enumerate(read_rows(file), start=1):
            if not isinstance(row.get("prompt"), str):
                raise DataError(Problem("has no column `prompt`", str(file), number))
            question = Question(None, row["prompt"], None, 128, row)
            asked.append(Asked(question, number, _text(row.get(REFERENCE)), row.get("title")))
        return asked
    found = []
    for number, question in enumerate(questions(job, file, task, str(file)), start=1):
        reference = _text(question.row.get(REFERENCE))
        if reference is None and question.task is not None:
            try:
                reference = fill(job.pipeline.tasks[question.task].completion, question.row)
            except DataError:
                reference = None  # the row has no answer: it is read, not scored
        found.append(Asked(question, number, reference, question.row.get("title")))
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True)
class Answered:
    """One side's answer, and the tokens of the reference, where there is one."""

    completion: Completion
    reference_ids: list[int]


def _answer(side: Side, asked: Sequence[Asked], generation: dict[str, Any], screen: Screen) -> list[Answered]:
    from pipelines.completions import complete

    with screen.working(f"Loading {side.name}"):
        loaded = side.load()
    with doing("reading the prompts as tokens"):
        ids = prompt_ids(loaded, [one.question for one in asked])
        references: list[list[int]] = []
        for one in asked:
            text = loaded.prompts.prompt_text(one.question.prompt, one.question.system)
            references.append([] if one.reference is None else loaded.prompts.encode(text, one.reference).supervised)
    bounds = [one.question.max_new_tokens for one in asked]
    with screen.bar(f"Answers of {side.name}", len(asked), "rows") as progress:
        answers = complete(loaded, ids, generation, bounds, progress, references)
    return [Answered(answer, reference) for answer, reference in zip(answers, references, strict=True)]


def _write(asked: Sequence[Asked], answers: Sequence[Answered], folder: Path, with_losses: bool) -> None:
    """completions.jsonl for rows with a reference, probes.jsonl for those without."""
    scored: list[dict[str, Any]] = []
    free: list[dict[str, Any]] = []
    for one, answered in zip(asked, answers, strict=True):
        answer: dict[str, Any] = {
            "prompt": one.question.prompt, "completion": answered.completion.text,
            "new_tokens": answered.completion.new_tokens, "finished": answered.completion.finished,
        }  # fmt: skip
        if one.reference is None:
            free.append({"title": one.title, **answer})
        else:
            answer |= {"reference": one.reference, "reference_loss": answered.completion.reference_loss if with_losses else None}
            scored.append({"task": one.question.task or FREE, "row": one.number, "fields": one.question.row, **answer})
    for name, lines in (("completions.jsonl", scored), ("probes.jsonl", free)):
        if lines:
            write_jsonl(folder / name, lines)


def _describe(
    one: Side, two: Side, job: Job | None, tasks: dict[str, dict[str, Any]], folder: Path, aside: Path, command: str
) -> None:
    """The manifest and the config that the report reads."""
    import yaml

    settings = {side.name: side.job.resolved() if side.job else side.place for side in (one, two)}
    config = {"pipeline": {"tasks": tasks}, "compared": settings}
    write_text(aside / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    models = dict.fromkeys(side.job.ludwig["base_model"] if side.job else side.place for side in (one, two))
    manifest = Run(aside)
    write_json(
        manifest.manifest_path,
        {
            **manifest.manifest, "name": folder.name, "sides": [one.name, two.name], "command": command,
            "base_model": " and ".join(models), "seed": job.pipeline.seed if job else 0,
            "generation": job.ludwig["generation"] if job else {},
            "versions": versions(), "hardware": hardware(), "data": {},
        },
    )  # fmt: skip
