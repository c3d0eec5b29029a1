"""Two models on the same prompts: a folder like a run's, which the report reads as it reads a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.config.pipeline import Task
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.templates import fill, template_columns, to_text
from pipelines.errors import DataError, RunError
from pipelines.predict import Question, check_lengths, load_tuned, questions, tuned_format, tuned_job
from pipelines.storage.environment import hardware, versions
from pipelines.storage.files import atomic_dir, os_errors_as_machine_error, write_json, write_text
from pipelines.storage.records import (
    CompletionRecord,
    Hardware,
    Manifest,
    SamplePromptRecord,
    read_records,
    write_records,
)
from pipelines.storage.run_folder import FORMAT_VERSION, Run

if TYPE_CHECKING:
    from pipelines.console.reporter import ConsoleReporter
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.evaluation.completions import Completion, LoadedModel

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
        from pipelines.modeling.base_models import find_base_model

        folder = Path(place)
        if (folder / "manifest.json").is_file():
            run = Run.open(folder)
            return cls(run.name, place, run, tuned_job(run), None)
        if "/" in place and folder.parent.is_dir() and not folder.exists():
            raise RunError(f"{place}: there is no such folder")
        return cls(folder.name, place, None, None, find_base_model(place))

    def format(self) -> tuple[PromptFormat, int]:
        """How it writes prompts, and the tokens that it can read. Loads no model."""
        from pipelines.data.prompt_format import PromptFormat
        from pipelines.modeling.base_models import context_length

        if self.model is not None:
            return PromptFormat.from_folder(self.model), context_length(self.model)
        assert self.run is not None and self.job is not None
        return tuned_format(self.run, self.job)

    def load(self) -> LoadedModel:
        from pipelines.evaluation.completions import LoadedModel

        if self.model is not None:
            return LoadedModel.from_folder(self.model, None)
        assert self.run is not None and self.job is not None
        return load_tuned(self.run, self.job)


@dataclass(frozen=True)
class Asked:
    """A question with what the report wants to know beside it."""

    question: Question
    reference: str | None
    title: str | None = None


def compare_models(
    places: tuple[str, str],
    prompts: Path | None,
    task: str | None,
    raw: bool,
    metric: str,
    folder: Path,
    command: str,
    reporter: ConsoleReporter,
) -> Path:
    """Puts the answers of both into `folder` and returns it.

    Without `prompts` the test rows of the first run are asked; two runs that both have answered them are not asked
    again. Every row is checked before a model is loaded. Raises RunError where no side is a run that could say what to ask,
    or where two runs share no test row; DataError for rows that cannot be asked or scored.
    """
    if prompts is None and (task is not None or raw):
        raise RunError(f"{'--raw' if raw else '--task'} says how the rows of a file are asked; add --prompts FILE")
    with reporter.status("Models"):
        one, two = Side.of(places[0]), Side.of(places[1])
    if one.name == two.name:
        one, two = replace(one, name=one.place), replace(two, name=two.place)
    job = one.job or two.job
    if prompts is None and job is None:
        raise RunError("two models that are no runs need prompts to be compared on; add --prompts FILE")
    with os_errors_as_machine_error(folder), atomic_dir(folder) as staging:
        if prompts is None and one.run is not None and two.run is not None:
            tasks = _stored_answers(one.run, two.run, staging)
        else:
            tasks = _new_answers(one, two, job, prompts, task, raw, metric, staging, reporter)
        _describe(one, two, job, tasks, folder, staging, command)
    return folder


def _stored_answers(one: Run, two: Run, folder: Path) -> dict[str, dict[str, Any]]:
    """The tuned answers that both runs have given to the same prompts. Returns the tasks that they share."""

    def answers(run: Run) -> dict[tuple[str, str, str], CompletionRecord]:
        records = read_records(run.path("tuned", "completions.jsonl"), CompletionRecord)
        return {(record.task, record.prompt, record.reference): record for record in records}

    left, right = answers(one), answers(two)
    shared = [key for key in left if key in right]
    if not shared:
        raise RunError(f"{one.folder} and {two.folder} share no test row; give a file of prompts with --prompts FILE")
    write_records(folder / "base" / "completions.jsonl", [left[key] for key in shared])
    tuned = [right[key].model_copy(update={"row": left[key].row}) for key in shared]
    write_records(folder / "tuned" / "completions.jsonl", tuned)
    tasks = tuned_job(one).pipeline.tasks
    return {name: _scoring(tasks[name]) for name in dict.fromkeys(key[0] for key in shared)}


def _generation(job: Job | None) -> dict[str, Any]:
    """The settings that act when answers are made, over neutral ones."""
    given = job.generation if job else {"do_sample": False, "max_new_tokens": 128}
    return {key: value for key, value in given.items() if value is not None}


def _scoring(task: Task) -> dict[str, Any]:
    """What the report must know of a task."""
    return {"metric": task.metric, "normalize": task.normalize, "cluster_by": task.cluster_by}


def _new_answers(
    one: Side,
    two: Side,
    job: Job | None,
    prompts: Path | None,
    task: str | None,
    raw: bool,
    metric: str,
    folder: Path,
    reporter: ConsoleReporter,
) -> dict[str, dict[str, Any]]:
    if prompts is None:
        owner = one.run or two.run
        assert owner is not None and job is not None
        asked = _test_rows(owner, job)
    else:
        asked = _rows_of_file(job, prompts, task, raw, one.place if one.job else two.place)
    from pipelines.scoring.sandbox import prepare_sandbox

    known = job.pipeline.tasks if job else {}
    named = dict.fromkeys(one.question.task or FREE for one in asked if one.reference is not None)
    tasks = {
        name: _scoring(known[name]) if name in known else {"metric": metric, "normalize": None, "cluster_by": None}
        for name in named
    }
    prepare_sandbox({str(task["metric"]) for task in tasks.values()}, reporter.status)
    _check_scores(asked, tasks)
    generation = _generation(job)
    tokens = [_tokens(side, asked) for side in (one, two)]
    # A loss per token compares two models only where both cut the references into the same tokens.
    same_tokens = tokens[0].references == tokens[1].references
    for side, given, which in ((one, tokens[0], "base"), (two, tokens[1], "tuned")):
        _write(asked, _answer(side, asked, given, generation, reporter), folder / which, with_losses=same_tokens)
    return tasks


def _check_scores(asked: Sequence[Asked], tasks: dict[str, dict[str, Any]]) -> None:
    """Raises DataError for the rows that their metric cannot score, found by scoring their references: after the answers it
    would be too late."""
    from pipelines.scoring.metric import metric_key, resolve

    errors = RowErrors()
    for one in asked:
        if one.reference is None:
            continue
        question, name = one.question, one.question.task or FREE
        line = {"task": name, "row": question.number, "reference_nll": 0.0, "fields": question.row}
        try:
            metric = resolve(metric_key(tasks[name]["metric"], tasks[name]["normalize"]))
            metric.score({**line, "reference": one.reference, "completion": one.reference})
        except DataError as error:
            errors.add(question.file, question.number, str(error))
    errors.raise_if_any()


def _test_rows(run: Run, job: Job) -> list[Asked]:
    from pipelines.data.tokenize_rows import read_test_examples

    asked = []
    for example in (row.example for row in read_test_examples(run.path("data"), job)):
        limit, fields = job.max_new_tokens(example.task), dict(example.fields)
        question = Question(example.task, example.prompt, example.system, limit, fields, example.file, example.row)
        asked.append(Asked(question, example.completion))
    return asked


def _rows_of_file(job: Job | None, file: Path, task: str | None, raw: bool, place: str) -> list[Asked]:
    """Rows of a task of the run (its columns, the reference by its template), or free prompts with or without a `reference`:
    with `raw`, or where there is no run. Raises DataError for every row that cannot be asked."""
    if job is None and task is not None:
        raise RunError("--task: two models that are no runs have no task; leave it out")
    asked = questions(job, file, task, place, raw) if job else _free_questions(file)
    found, errors = [], RowErrors()
    for question in asked:
        try:
            if job is not None and question.task is not None:
                found.append(Asked(question, _reference(job.pipeline.tasks[question.task].completion, question.row)))
            else:
                reference = question.row.get(REFERENCE)
                text = None if reference in (None, "") else to_text(REFERENCE, reference)
                found.append(Asked(question, text, question.row.get("title") or None))
        except DataError as error:
            errors.add(question.file, question.number, str(error))
    errors.raise_if_any()
    return found


def _free_questions(file: Path) -> list[Question]:
    found, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        try:
            sample = parse_sample_prompt(row, file, number)
            found.append(Question(None, sample.prompt, None, sample.max_new_tokens or 128, row, str(file), number))
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return found


def _reference(template: str, row: dict[str, Any]) -> str | None:
    """The right answer of a row, None where a column of it is missing or empty: it is read, not scored."""
    if any(row.get(name) in (None, "") for name in template_columns(template)):
        return None
    return fill(template, row)


@dataclass(frozen=True)
class Tokens:
    """What one side reads for each row: its prompt, and its reference, empty where there is none."""

    prompts: list[list[int]]
    references: list[list[int]]


def _tokens(side: Side, asked: Sequence[Asked]) -> Tokens:
    """Raises DataError for rows that are longer than the side can read."""
    prompts, context = side.format()
    ids, references, errors = check_lengths(prompts, [one.question for one in asked], context), [], RowErrors()
    for one, prompt in zip(asked, ids, strict=True):
        question, reference = one.question, []
        if one.reference is not None:
            reference = prompts.encode(
                prompts.render_prompt(question.prompt, question.system), one.reference
            ).completion_ids
        if len(prompt) + len(reference) > context:
            message = (
                f"with its reference it is longer than the {context} tokens that {side.name} can read; drop the row"
            )
            errors.add(question.file, question.number, message)
        references.append(reference)
    errors.raise_if_any()
    return Tokens(ids, references)


def _answer(
    side: Side, asked: Sequence[Asked], tokens: Tokens, generation: dict[str, Any], reporter: ConsoleReporter
) -> list[Completion]:
    from pipelines.evaluation.completions import complete

    with reporter.status(f"Loading {side.name}"):
        loaded = side.load()
    bounds = [one.question.max_new_tokens for one in asked]
    with reporter.progress(f"Answers of {side.name}", len(asked), "rows") as progress:
        return complete(loaded, tokens.prompts, generation, bounds, progress, tokens.references)


def _write(asked: Sequence[Asked], answers: Sequence[Completion], folder: Path, with_losses: bool) -> None:
    """completions.jsonl for rows with a reference, sample_prompts.jsonl for those without."""
    completions: list[CompletionRecord] = []
    sample_prompts: list[SamplePromptRecord] = []
    for one, answered in zip(asked, answers, strict=True):
        if one.reference is None:
            sample_prompts.append(
                SamplePromptRecord(
                    title=one.title,
                    prompt=one.question.prompt,
                    completion=answered.text,
                    num_generated_tokens=answered.num_generated_tokens,
                    finish_reason=answered.finish_reason,
                )
            )
        else:
            completions.append(
                CompletionRecord(
                    task=one.question.task or FREE,
                    row=one.question.number,
                    prompt=one.question.prompt,
                    reference=one.reference,
                    completion=answered.text,
                    reference_nll=answered.reference_nll if with_losses else None,
                    num_generated_tokens=answered.num_generated_tokens,
                    finish_reason=answered.finish_reason,
                    fields=one.question.row,
                )
            )
    if completions:
        write_records(folder / "completions.jsonl", completions)
    if sample_prompts:
        write_records(folder / "sample_prompts.jsonl", sample_prompts)


def _describe(
    one: Side, two: Side, job: Job | None, tasks: dict[str, dict[str, Any]], folder: Path, aside: Path, command: str
) -> None:
    """The manifest and the config that the report reads."""
    import yaml

    settings = {side.name: side.job.resolved() if side.job else side.place for side in (one, two)}
    config = {"pipeline": {"tasks": tasks}, "compared": settings}
    write_text(aside / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    models = dict.fromkeys(side.job.base_model if side.job else side.place for side in (one, two))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=folder.name,
        models=(one.name, two.name),
        command=command,
        base_model=" and ".join(models),
        seed=job.pipeline.seed if job else 0,
        generation=_generation(job),
        versions=versions(),
        hardware=Hardware(**hardware()),
        stages={},
        data={},
    )
    write_json(aside / "manifest.json", manifest.model_dump())
