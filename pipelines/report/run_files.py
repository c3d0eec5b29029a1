"""Read a run folder: every file once, checked, or one RunError that names the file and the mend."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import Problem, RunError
from pipelines.scoring.metric import metric_key

FORMAT_VERSION = 1
AGAIN = "nothing else in {} was touched; run the job again under another --name"


class Record(BaseModel):
    """One JSON object of the run folder; keys that the report does not know are kept as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)


class Completion(Record):
    """A line of `base/completions.jsonl` or `tuned/completions.jsonl`; the loss in nats per token."""

    task: str
    row: int
    prompt: str
    reference: str
    completion: str
    reference_nll: float | None
    num_generated_tokens: int
    finish_reason: Literal["stop", "length"]
    fields: dict[str, Any] = {}


class ProbeAnswer(Record):
    """A line of `sample_prompts.jsonl`: a free prompt, which has no reference."""

    title: str | None = None
    prompt: str
    completion: str


class GuardScore(Record):
    """A line of `retention/base.jsonl` or `retention/tuned.jsonl`: one item of one guard, None where it could not be scored."""

    guard: str
    kind: str
    metric: str = ""
    item: int
    score: float | None
    chance: float | None = None
    own: float | None = None


class GuardMeans(Record):
    """The guards' means while training."""

    step: int
    scores: dict[str, float]


class TrainLoss(Record):
    step: int
    loss: float


class ValidationLoss(Record):
    step: int
    loss: float
    tasks: dict[str, float] = {}


class Training(Record):
    """`model/training.json`; losses in nats per supervised token."""

    steps: int
    rows: int
    supervised_tokens: int
    seconds: float
    train_loss: list[TrainLoss]
    validation_loss: list[ValidationLoss]
    best_step: int | None = None
    stopped_early: bool = False
    trainable_parameters: int | None = None
    parameters: int | None = None
    peak_memory_bytes: int | None = None
    retention: list[GuardMeans] = []
    forgetting: list[dict[str, float | None]] = []
    """What the strategies did at each step."""

    @property
    def judged_once(self) -> bool:
        """Validation looked at one set of trained weights alone."""
        return len({point.step for point in self.validation_loss if point.step}) < 2


class Stage(Record):
    seconds: float


class TaskData(Record):
    """Rows of a task per split."""

    train: int
    validation: int
    test: int
    file: str = ""
    notes: list[str] = []
    """What preflight found in its labels, in sentences."""


class Hardware(Record):
    """The machine of the run."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None = None


class Manifest(Record):
    """`manifest.json`."""

    format_version: int
    name: str
    command: str
    base_model: str
    seed: int
    versions: dict[str, str]
    hardware: Hardware
    generation: dict[str, Any]
    stages: dict[str, Stage]
    data: dict[str, TaskData]
    sides: tuple[str, str] | None = None
    """Names of the two sides where this is no run but two models on the same prompts."""


@dataclass(frozen=True)
class RunFiles:
    """What a finished run left; `base` and `tuned` hold the same rows in the same order."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    base: list[Completion]
    tuned: list[Completion]
    base_probes: list[ProbeAnswer]
    tuned_probes: list[ProbeAnswer]
    training: Training | None
    base_guards: list[GuardScore]
    tuned_guards: list[GuardScore]

    @property
    def metrics(self) -> dict[str, str]:
        """The name for `metrics.resolve` of each task's metric, in the order of the config."""
        return {
            name: metric_key(task["metric"], task.get("normalize"))
            for name, task in self.config["pipeline"]["tasks"].items()
        }

    def group_column(self, task: str) -> str | None:
        """The column by which the task's rows belong together, if the config names one."""
        column = self.config["pipeline"]["tasks"][task].get("cluster_by")
        return None if column is None else str(column)


def read_run(run: Path) -> RunFiles:
    """Raises RunError for anything missing, broken, of another format, or not the same on both sides."""
    if not run.is_dir():
        make = shlex.join(["alfine", "run", "CONFIG", "--name", run.name])
        raise RunError(f"{run}: there is no such run folder; `{make}` makes it")
    manifest = _manifest(run / "manifest.json")
    is_run = manifest.sides is None
    training = run / "model" / "training.json"
    files = RunFiles(
        path=run,
        manifest=manifest,
        config=_config(run / "config.yaml"),
        base=_lines(run / "base" / "completions.jsonl", Completion, optional=not is_run),
        tuned=_lines(run / "tuned" / "completions.jsonl", Completion, optional=not is_run),
        base_probes=_lines(run / "base" / "sample_prompts.jsonl", ProbeAnswer, optional=True),
        tuned_probes=_lines(run / "tuned" / "sample_prompts.jsonl", ProbeAnswer, optional=True),
        training=_record(_text(training), Training, training) if is_run else None,
        base_guards=_lines(run / "retention" / "base.jsonl", GuardScore, optional=True),
        tuned_guards=_lines(run / "retention" / "tuned.jsonl", GuardScore, optional=True),
    )
    _same_rows(
        run / "tuned" / "completions.jsonl",
        [(line.task, line.row, line.prompt, line.reference) for line in files.base],
        [(line.task, line.row, line.prompt, line.reference) for line in files.tuned],
    )
    _same_rows(
        run / "tuned" / "sample_prompts.jsonl",
        [line.prompt for line in files.base_probes],
        [line.prompt for line in files.tuned_probes],
    )
    _same_rows(
        run / "retention" / "tuned.jsonl",
        [(line.guard, line.item) for line in files.base_guards],
        [(line.guard, line.item) for line in files.tuned_guards],
    )
    _every_task_has_rows(files)
    return files


def _manifest(path: Path) -> Manifest:
    raw = _json(_text(path), path)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        message = f"format_version is {version}, this alfine reads {FORMAT_VERSION}; run the job again with it"
        raise RunError(Problem(message, str(path)))
    return _validate(raw, Manifest, path)


def _config(path: Path) -> dict[str, Any]:
    """The resolved config as plain data: a task needs its metric, all else is only shown."""
    again = "run the job again to write it anew"
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise RunError(Problem(f"this is not YAML; {again}", str(path), line)) from error
    try:
        tasks = config["pipeline"]["tasks"].items()
        if not all(isinstance(task["metric"], str) for _, task in tasks):
            raise TypeError("metric")
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(Problem(f"pipeline.tasks must give each task its metric; {again}", str(path))) from error
    return dict(config)


def _lines[R: Record](path: Path, kind: type[R], optional: bool = False) -> list[R]:
    if optional and not (path.exists() and path.stat().st_size):
        return []
    # Not splitlines(): JSON may hold U+2028 and its like inside a string.
    lines = _text(path).split("\n")
    records = [_record(line, kind, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise RunError(Problem(f"the file has no rows; {AGAIN.format(path.parent)}", str(path)))
    return records


def _record[R: Record](text: str, kind: type[R], path: Path, line: int | None = None) -> R:
    return _validate(_json(text, path, line), kind, path, line)


def _validate[R: Record](raw: Any, kind: type[R], path: Path, line: int | None = None) -> R:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "finite_number":
            # Scores and losses only: a row's own columns are the user's, and not looked at.
            message = (
                f"{key} is {first['input']}: the training diverged; lower trainer.learning_rate and run the job again"
            )
            raise RunError(Problem(message, str(path), line)) from error
        message = f"{key or 'the line'}: {first['msg'].lower()}; {AGAIN.format(path.parent)}"
        raise RunError(Problem(message, str(path), line)) from error


def _json(text: str, path: Path, line: int | None = None) -> Any:
    """JSON without the halves of surrogate pairs that a model can write."""

    def clean(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: _whole(value) if isinstance(value, str) else value for key, value in pairs}

    try:
        return json.loads(text, object_pairs_hook=clean)
    except (ValueError, RecursionError) as error:
        message = f"broken JSON, the file may be cut off; {AGAIN.format(path.parent)}"
        raise RunError(Problem(message, str(path), line)) from error


def _whole(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "the file is missing: the run is not finished; repeat its `alfine run` command to go on with it"
        raise RunError(Problem(message, str(path))) from None
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8; {AGAIN.format(path.parent)}"
        raise RunError(Problem(message, str(path))) from error
    except OSError as error:
        raise RunError(Problem(f"the file cannot be read: {error.strerror}", str(path))) from error


def _same_rows(path: Path, base: Sequence[object], tuned: Sequence[object]) -> None:
    mend = "delete the folders base and tuned and run the job again"
    if len(base) != len(tuned):
        message = f"{len(tuned)} rows, but base has {len(base)}; {mend}"
        raise RunError(Problem(message, str(path)))
    for line, (one, other) in enumerate(zip(base, tuned, strict=True), 1):
        if one != other:
            raise RunError(Problem(f"not the row that base has on this line; {mend}", str(path), line))


def _every_task_has_rows(files: RunFiles) -> None:
    path = files.path / "base" / "completions.jsonl"
    found = {line.task for line in files.base}
    for task in files.metrics:
        if task not in found:
            message = f"task {task!r} has no rows here; give it test rows and run the job again"
            raise RunError(Problem(message, str(path)))
    for line, completion in enumerate(files.base, 1):
        if completion.task not in files.metrics:
            message = f"task {completion.task!r} is not in config.yaml; {AGAIN.format(path.parent)}"
            raise RunError(Problem(message, str(path), line))
