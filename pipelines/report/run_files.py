"""Reads a run folder: every file once, validated, or one RunError that names the file and the remedy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.errors import Problem, RunError
from pipelines.scoring.metric import metric_key
from pipelines.storage.records import (
    REJECT_NONFINITE,
    CompletionRecord,
    FewShotTask,
    Manifest,
    RecordBase,
    RetentionRecord,
    SamplePromptRecord,
    TrainingHistory,
    replace_surrogates,
)
from pipelines.storage.run_folder import read_manifest

RERUN_HINT = "nothing else in {} was changed; run the job again under another --name"


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run. `base` and `tuned` have the same rows in the same order."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    base: list[CompletionRecord]
    tuned: list[CompletionRecord]
    base_sample_prompts: list[SamplePromptRecord]
    tuned_sample_prompts: list[SamplePromptRecord]
    training: TrainingHistory | None
    base_retention: list[RetentionRecord]
    tuned_retention: list[RetentionRecord]
    few_shot: list[CompletionRecord]
    """Completions of the base with examples in its prompt, of the tasks that have some."""
    few_shot_tasks: dict[str, FewShotTask]

    @property
    def metrics(self) -> dict[str, str]:
        """The key for `metric_from_key` of each task, in the order of the config."""
        return {
            name: metric_key(task["metric"], task.get("normalize"))
            for name, task in self.config["pipeline"]["tasks"].items()
        }

    def cluster_column(self, task: str) -> str | None:
        """The column whose equal values make the rows of the task dependent; None if the config names none."""
        column = self.config["pipeline"]["tasks"][task].get("cluster_by")
        return None if column is None else str(column)


def read_run(folder: Path) -> RunFiles:
    """Reads the files of a run folder. Raises RunError if a file is missing, damaged or of another format, or if the
    models have different rows."""
    if not folder.is_dir():
        command = shlex.join(["alfine", "run", "CONFIG", "--name", folder.name])
        raise RunError(f"{folder}: there is no such run folder; create it with `{command}`")
    manifest = _read_manifest(folder / "manifest.json")
    is_run = manifest.models is None
    training, few_shot = folder / "model" / "training.json", folder / "few_shot"
    files = RunFiles(
        path=folder,
        manifest=manifest,
        config=_read_config(folder / "config.yaml"),
        base=_read_records(folder / "base" / "completions.jsonl", CompletionRecord, optional=not is_run),
        tuned=_read_records(folder / "tuned" / "completions.jsonl", CompletionRecord, optional=not is_run),
        base_sample_prompts=_read_records(folder / "base" / "sample_prompts.jsonl", SamplePromptRecord, optional=True),
        tuned_sample_prompts=_read_records(
            folder / "tuned" / "sample_prompts.jsonl", SamplePromptRecord, optional=True
        ),
        training=_parse_record(_read_text(training), TrainingHistory, training) if is_run else None,
        base_retention=_read_records(folder / "retention" / "base.jsonl", RetentionRecord, optional=True),
        tuned_retention=_read_records(folder / "retention" / "tuned.jsonl", RetentionRecord, optional=True),
        few_shot=_read_records(few_shot / "completions.jsonl", CompletionRecord, optional=True),
        few_shot_tasks={
            task.task: task for task in _read_records(few_shot / "tasks.jsonl", FewShotTask, optional=True)
        },
    )
    _check_same_rows(
        folder / "tuned" / "completions.jsonl",
        [(record.task, record.row, record.prompt, record.reference) for record in files.base],
        [(record.task, record.row, record.prompt, record.reference) for record in files.tuned],
    )
    _check_same_rows(
        folder / "tuned" / "sample_prompts.jsonl",
        [record.prompt for record in files.base_sample_prompts],
        [record.prompt for record in files.tuned_sample_prompts],
    )
    _check_same_rows(
        folder / "retention" / "tuned.jsonl",
        [(record.eval, record.item) for record in files.base_retention],
        [(record.eval, record.item) for record in files.tuned_retention],
    )
    _check_tasks(files)
    _check_few_shot(files)
    return files


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise _missing(path)
    return _validate(read_manifest(path), Manifest, path)


def _read_config(path: Path) -> dict[str, Any]:
    """The resolved config. Each task must have a metric; everything else is only displayed."""
    try:
        config = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise RunError(Problem("this is not YAML; run the job again to rewrite it", str(path), line)) from error
    try:
        tasks = config["pipeline"]["tasks"].items()
        if not all(isinstance(task["metric"], str) for _, task in tasks):
            raise TypeError("metric")
    except (TypeError, KeyError, AttributeError) as error:
        message = "pipeline.tasks must give each task its metric; run the job again to rewrite it"
        raise RunError(Problem(message, str(path))) from error
    return dict(config)


def _read_records[R: RecordBase](path: Path, record_type: type[R], optional: bool = False) -> list[R]:
    if optional and not (path.exists() and path.stat().st_size):
        return []
    # Not splitlines(): strings in JSON may contain U+2028 and similar line separators.
    lines = _read_text(path).split("\n")
    records = [_parse_record(line, record_type, path, index) for index, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise RunError(Problem(f"the file has no rows; {RERUN_HINT.format(path.parent)}", str(path)))
    return records


def _parse_record[R: RecordBase](text: str, record_type: type[R], path: Path, line: int | None = None) -> R:
    try:
        value = json.loads(text, object_pairs_hook=_without_surrogates)
    except (ValueError, RecursionError) as error:
        message = f"broken JSON, the file may be truncated; {RERUN_HINT.format(path.parent)}"
        raise RunError(Problem(message, str(path), line)) from error
    return _validate(value, record_type, path, line)


def _without_surrogates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: replace_surrogates(value) for key, value in pairs}


def _validate[R: RecordBase](value: Any, record_type: type[R], path: Path, line: int | None = None) -> R:
    try:
        return record_type.model_validate(value, context=REJECT_NONFINITE)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "finite_number":
            # Scores and losses only: the columns of a row belong to the user and are not checked.
            message = (
                f"{key} is {first['input']}: the training diverged; lower trainer.learning_rate and run the job again"
            )
            raise RunError(Problem(message, str(path), line)) from error
        message = f"{key or 'the line'}: {first['msg'].lower()}; {RERUN_HINT.format(path.parent)}"
        raise RunError(Problem(message, str(path), line)) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(path) from None
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8; {RERUN_HINT.format(path.parent)}"
        raise RunError(Problem(message, str(path))) from error
    except OSError as error:
        raise RunError(Problem(f"the file cannot be read: {error.strerror}", str(path))) from error


def _missing(path: Path) -> RunError:
    message = "the file is missing: the run is not finished; repeat its `alfine run` command to resume it"
    return RunError(Problem(message, str(path)))


def _check_same_rows(path: Path, base: Sequence[object], tuned: Sequence[object]) -> None:
    advice = "delete the folders base and tuned and run the job again"
    if len(base) != len(tuned):
        raise RunError(Problem(f"{len(tuned)} rows, but base has {len(base)}; {advice}", str(path)))
    for line, (base_row, tuned_row) in enumerate(zip(base, tuned, strict=True), 1):
        if base_row != tuned_row:
            raise RunError(Problem(f"not the row that base has on this line; {advice}", str(path), line))


def _check_few_shot(files: RunFiles) -> None:
    """Raises RunError unless the completions after examples are of the rows of the base, and their tasks are known."""
    tasks = {name for name, task in files.few_shot_tasks.items() if task.has_prompts}

    def keys(records: Sequence[CompletionRecord]) -> list[tuple[str, int, str, str]]:
        return [
            (record.task, record.row, record.prompt, record.reference) for record in records if record.task in tasks
        ]

    if keys(files.few_shot) != keys(files.base) or len(keys(files.few_shot)) != len(files.few_shot):
        message = "not the rows that base has; delete the folder few_shot and run the job again"
        raise RunError(Problem(message, str(files.path / "few_shot" / "completions.jsonl")))


def _check_tasks(files: RunFiles) -> None:
    """Raises RunError if the tasks of the completions are not the tasks of the config."""
    path = files.path / "base" / "completions.jsonl"
    tasks = {record.task for record in files.base}
    for task in files.metrics:
        if task not in tasks:
            message = f"task {task!r} has no rows here; give it test rows and run the job again"
            raise RunError(Problem(message, str(path)))
    for line, record in enumerate(files.base, 1):
        if record.task not in files.metrics:
            message = f"task {record.task!r} is not in config.yaml; {RERUN_HINT.format(path.parent)}"
            raise RunError(Problem(message, str(path), line))
