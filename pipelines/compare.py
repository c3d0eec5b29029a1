"""Comparison of two models on the same prompts, in a folder that the report reads like a run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.config.job import Job
from pipelines.config.pipeline import Task
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors, numbered_rows
from pipelines.data.row_formats import answer_columns, as_test_rows, fill_row, used_columns
from pipelines.data.row_reasoning import Mode, settle
from pipelines.data.sample_prompts import parse_sample_prompt
from pipelines.data.templates import fill_reasoning, to_text
from pipelines.data.tokenize_rows import TokenizedExample, read_test_examples, tokenize_examples
from pipelines.errors import DataError, RunError
from pipelines.evaluation.completion_records import completion_record, sample_prompt_record
from pipelines.evaluation.completions import Completion, LoadedModel, complete
from pipelines.evaluation.stored_completions import copy_few_shot
from pipelines.modeling.base_models import ensure_base_model
from pipelines.prediction.models import load_tuned, tuned_job, tuned_prompt_format
from pipelines.prediction.rows import check_prompt_lengths, load_prompts
from pipelines.registry import lazy_import
from pipelines.scoring.metric import metric_from_key, metric_key
from pipelines.scoring.sandbox import prepare_sandbox
from pipelines.storage.environment import machine, versions
from pipelines.storage.files import atomic_dir, os_errors_as_machine_error, write_json, write_text
from pipelines.storage.records import CompletionRecord, Hardware, Manifest, read_records, write_records
from pipelines.storage.run_folder import FORMAT_VERSION, Run

if TYPE_CHECKING:
    from pipelines.modeling import hardware as hardware_module
else:
    hardware_module = lazy_import(
        "pipelines.modeling.hardware"
    )  # torch: 3 s that an error in a prompts file does not need

REFERENCE = "reference"
"""The column of a prompts file with the reference of a raw prompt."""
UNLABELED_TASK = "prompts"
"""The task, in the report, of raw prompts with a reference."""
DEFAULT_GENERATION = {"do_sample": False, "max_new_tokens": 128}
"""Generation settings for two models that are not runs."""

Scoring = dict[str, Any]
"""What the report needs to score a task: `metric`, `normalize`, `cluster_by`."""


@dataclass(frozen=True)
class ModelRef:
    """One of the two models: the tuned model of a run, or any model that `base_model` may name."""

    name: str
    spec: str
    """The model as it is written on the command line."""
    run: Run | None = None
    job: Job | None = None
    folder: Path | None = None
    """The folder of a model that is not a run."""

    @classmethod
    def from_spec(cls, spec: str) -> ModelRef:
        """Raises RunError or ModelError if `spec` is neither a run nor a model."""
        path = Path(spec)
        if (path / "manifest.json").is_file():
            run = Run.open(path)
            return cls(run.name, spec, run=run, job=tuned_job(run))
        if "/" in spec and path.parent.is_dir() and not path.exists():
            raise RunError(f"{spec}: no such folder")
        return cls(path.name, spec, folder=ensure_base_model(spec))

    def prompt_format(self) -> PromptFormat:
        """The model's prompt format. Loads no model."""
        if self.folder is not None:
            return PromptFormat.from_folder(self.folder)
        assert self.run is not None and self.job is not None
        return tuned_prompt_format(self.run, self.job)

    def load(self) -> LoadedModel:
        if self.folder is not None:
            return LoadedModel.from_folder(self.folder, allow_vllm=True)
        assert self.run is not None and self.job is not None
        return load_tuned(self.run, self.job)


def compare_models(
    specs: tuple[str, str],
    prompts: Path | None,
    task: str | None,
    raw: bool,
    metric: str,
    folder: Path,
    command: str,
    reporter: ConsoleReporter,
) -> Path:
    """Writes the completions of both models to `folder` and returns it.

    Without `prompts`, the test rows of the first run are used; the stored completions of two runs are reused. `metric`
    scores raw prompts with a reference. All rows are checked before a model is loaded.

    Raises RunError if neither model is a run with test rows, or two runs have no test row in common; DataError for rows
    that cannot be used or scored.
    """
    if prompts is None and (task is not None or raw):
        raise RunError(f"{'--raw' if raw else '--task'} applies to the rows of a file; add --prompts FILE")
    with reporter.status("Models"):
        first, second = ModelRef.from_spec(specs[0]), ModelRef.from_spec(specs[1])
    if first.name == second.name:
        first, second = replace(first, name=first.spec), replace(second, name=second.spec)
    models = (first, second)
    job = first.job or second.job
    if prompts is None and job is None:
        raise RunError("neither model is a run with test rows; add --prompts FILE")
    with os_errors_as_machine_error(folder), atomic_dir(folder) as staging:
        if prompts is None and first.run is not None and second.run is not None:
            scoring = _copy_stored_completions(first.run, second.run, staging)
        else:
            examples = _load_examples(models, prompts, task, raw)
            scoring = _scoring_of(examples, job, metric)
            prepare_sandbox({str(settings["metric"]) for settings in scoring.values()}, reporter.status)
            check_scores(examples, scoring)
            _write_completions(models, examples, _generation(job), staging, reporter)
        if prompts is None and second.run is not None:
            copy_few_shot(second.run, staging)
        _write_manifest(models, job, scoring, folder.name, staging, command)
    return folder


def _copy_stored_completions(first: Run, second: Run, folder: Path) -> dict[str, Scoring]:
    """Copies the tuned models' completions of the test rows that both runs have. Returns the scoring of their tasks."""

    def completions(run: Run) -> dict[tuple[str, str, str], CompletionRecord]:
        records = read_records(run.path("tuned", "completions.jsonl"), CompletionRecord)
        return {(record.task, record.prompt, record.reference): record for record in records}

    first_records, second_records = completions(first), completions(second)
    shared = [key for key in first_records if key in second_records]
    if not shared:
        raise RunError(f"{first.folder} and {second.folder} have no test row in common; add --prompts FILE")
    write_records(folder / "base" / "completions.jsonl", [first_records[key] for key in shared])
    # The rows are numbered as in the first run, so that the report pairs the completions.
    renumbered = [second_records[key].model_copy(update={"row": first_records[key].row}) for key in shared]
    write_records(folder / "tuned" / "completions.jsonl", renumbered)
    job = tuned_job(first)
    return {name: _task_scoring(job, name) for name in dict.fromkeys(task for task, _, _ in shared)}


def _generation(job: Job | None) -> dict[str, Any]:
    """The generation settings that have an effect."""
    settings = job.generation if job else DEFAULT_GENERATION
    return {key: value for key, value in settings.items() if value is not None}


def _task_scoring(job: Job, name: str) -> Scoring:
    task = job.pipeline.tasks[name]
    return {"metric": task.metric, "normalize": task.normalize, "cluster_by": task.cluster_by}


def _scoring_of(examples: Sequence[Example], job: Job | None, metric: str) -> dict[str, Scoring]:
    """The scoring of every task with a reference, in the order of the examples; `metric` is that of raw prompts."""
    names = dict.fromkeys(example.task or UNLABELED_TASK for example in examples if example.completion is not None)
    raw_scoring = {"metric": metric, "normalize": None, "cluster_by": None}
    known = job.pipeline.tasks if job else {}
    return {name: _task_scoring(job, name) if job and name in known else raw_scoring for name in names}


def check_scores(examples: Sequence[Example], scoring: Mapping[str, Scoring]) -> None:
    """Raises DataError with every row that its metric cannot score.

    The references are scored as if they were completions, since after generation it would be too late.
    """
    errors = RowErrors()
    for example in examples:
        if example.completion is None:
            continue
        task = example.task or UNLABELED_TASK
        record = {"task": task, "row": example.row_number, "reference_nll": 0.0, "fields": example.fields}
        try:
            metric = metric_from_key(metric_key(scoring[task]["metric"], scoring[task]["normalize"]))
            metric.score({**record, "reference": example.completion, "completion": example.completion})
        except DataError as error:
            errors.add(example.file, example.row_number, str(error))
    errors.raise_if_any()


def _load_examples(
    models: tuple[ModelRef, ModelRef], prompts: Path | None, task: str | None, raw: bool
) -> list[Example]:
    """The rows of the file `prompts`, or the test rows of the first model that is a run. Each has its token limit."""
    owner = next((model for model in models if model.job is not None), None)
    if prompts is not None:
        manifest = owner.run.manifest if owner and owner.run else {}
        return load_file(owner.job if owner else None, prompts, task, raw, owner.spec if owner else "", manifest)
    assert owner is not None and owner.run is not None and owner.job is not None
    return [row.example for row in read_test_examples(owner.run.path("data"), owner.job)]


def load_file(
    job: Job | None,
    file: Path,
    task: str | None,
    raw: bool,
    run: str,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> list[Example]:
    """Reads prompts with their references as `completion`, None for a row without one.

    A row belongs to a task of the job, whose templates give prompt and reference. With `raw`, or without a job, its
    columns `prompt` and `reference` do. Raises DataError with every row that cannot be used.
    """
    if job is None and task is not None:
        raise RunError("--task: neither model is a run with tasks; remove it")
    examples = load_prompts(job, file, task, run, raw, manifest) if job else _load_raw_prompts(file)
    referenced, errors = [], RowErrors()
    for example in examples:
        try:
            if job is not None and example.task:
                example, reference = _task_reference(job.pipeline.tasks[example.task], example)
            else:
                value = example.fields.get(REFERENCE)
                reference = None if value in (None, "") else to_text(REFERENCE, value)
            referenced.append(replace(example, completion=reference))
        except DataError as error:
            errors.add(example.file, example.row_number, str(error))
    errors.raise_if_any()
    return referenced


def _load_raw_prompts(file: Path) -> list[Example]:
    default = int(DEFAULT_GENERATION["max_new_tokens"])
    examples, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        try:
            sample = parse_sample_prompt(row, file, number)
            examples.append(replace(sample, max_new_tokens=sample.max_new_tokens or default))
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return examples


def _task_reference(task: Task, example: Example) -> tuple[Example, str | None]:
    """The example with its thought, and its reference; None if a column of it is missing or empty: such a row is shown
    without a score."""
    last_turn = task.model_copy(update={"evaluate_on": "last"})
    if any(example.fields.get(name) in (None, "", []) for name in answer_columns(task)):
        return example, None
    (filled,) = as_test_rows(fill_row(last_turn, example.fields, example.system))
    asked = example.reasoning is not None
    reasoning = fill_reasoning(task.reasoning, example.fields, used_columns(task)) if asked else None
    turns = filled.turns and replace(filled.turns, template_kwargs=example.template_kwargs, with_reasoning=asked)
    completed = replace(example, completion=filled.completion, reasoning=None if turns else reasoning, turns=turns)
    mode: Mode = "train" if asked else "remove" if task.reasoning is False else "keep"
    settled = settle(completed, mode, None)
    return settled, settled.completion


def _write_completions(
    models: tuple[ModelRef, ModelRef],
    examples: Sequence[Example],
    generation: dict[str, Any],
    folder: Path,
    reporter: ConsoleReporter,
) -> None:
    """Writes base/ with the completions of the first model and tuned/ with those of the second."""
    tokenized = [_tokenize(model, examples) for model in models]
    # A loss per token is comparable only if both models split the references into the same tokens.
    first_tokens, second_tokens = ([row.completion_ids for row in rows] for rows in tokenized)
    for model, rows, subfolder in zip(models, tokenized, ("base", "tuned"), strict=True):
        completions = _complete(model, rows, generation, reporter)
        if first_tokens != second_tokens:
            completions = [replace(completion, reference_nll=None) for completion in completions]
        pairs = list(zip(examples, completions, strict=True))
        scored = [completion_record(_labeled(example), c) for example, c in pairs if example.completion is not None]
        unscored = [sample_prompt_record(example, c) for example, c in pairs if example.completion is None]
        for file, records in (("completions.jsonl", scored), ("sample_prompts.jsonl", unscored)):
            if records:
                write_records(folder / subfolder / file, records)


def _labeled(example: Example) -> Example:
    return replace(example, task=example.task or UNLABELED_TASK)


def _tokenize(model: ModelRef, examples: Sequence[Example]) -> list[TokenizedExample]:
    """Raises DataError with every row that is longer than the model's context."""
    prompt_format, errors = model.prompt_format(), RowErrors()
    context_length = prompt_format.context_length
    if prompt_format.reasoning_markers is None:  # this model does not know of reasoning
        examples = [replace(example, reasoning=None) for example in examples]
    rows = list(tokenize_examples(examples, prompt_format))
    check_prompt_lengths(rows, context_length)
    for row in rows:
        if len(row.input_ids) > context_length:
            message = f"prompt and reference are longer than the context of {model.name} ({context_length} tokens)"
            errors.add(row.example.file, row.example.row_number, f"{message}; shorten or drop the row")
    errors.raise_if_any()
    return rows


def _complete(
    model: ModelRef, rows: Sequence[TokenizedExample], generation: dict[str, Any], reporter: ConsoleReporter
) -> list[Completion]:
    with reporter.status(f"Loading {model.name}"):
        loaded = model.load()
    limits = [int(row.example.max_new_tokens or generation["max_new_tokens"]) for row in rows]
    prompts, references = [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
    with reporter.progress(f"Completions of {model.name}", len(rows), "rows") as progress:
        return complete(loaded, prompts, generation, limits, progress, references)


def _write_manifest(
    models: tuple[ModelRef, ModelRef],
    job: Job | None,
    scoring: Mapping[str, Scoring],
    name: str,
    folder: Path,
    command: str,
) -> None:
    """Writes the manifest and the config that the report reads."""
    settings = {model.name: model.job.resolved() if model.job else model.spec for model in models}
    config = {"pipeline": {"tasks": dict(scoring)}, "compared": settings}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    base_models = dict.fromkeys(model.job.base_model if model.job else model.spec for model in models)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        models=(models[0].name, models[1].name),
        command=command,
        base_model=" and ".join(base_models),
        seed=job.pipeline.seed if job else 0,
        generation=_generation(job),
        versions=versions(),
        hardware=Hardware(**machine(), **hardware_module.current_hardware().describe()),
        stages={},
        data={},
    )
    write_json(folder / "manifest.json", manifest.model_dump())
