"""One YAML file is the job: `pipeline:` is ours, everything else is an ordinary Ludwig config.

`load_job` reads, applies overrides, checks everything at once and raises one ConfigError with all it found,
each with file and line. It imports neither Ludwig nor torch and looks at no data file.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.config.base import Count, Fraction, Positive, Section, Text
from pipelines.config.forgetting import Forgetting, job_traits, resolve_auto, strategy_conflicts
from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_checks import check_ludwig_config
from pipelines.config.messages import did_you_mean
from pipelines.config.other_tools import LUDWIG, detect_tool
from pipelines.config.overrides import apply_override
from pipelines.config.pydantic_errors import error_path, schema_of, to_problem
from pipelines.config.renamed_keys import rename_old_keys
from pipelines.config.schema import ludwig_fields
from pipelines.config.yaml_parser import read_yaml
from pipelines.config.yaml_source import Document, sort_problems
from pipelines.errors import ConfigError, Problem
from pipelines.scoring.metric import METRICS, metric_hint


class DataFiles(Section):
    """A file for each split, where they are kept apart."""

    train: Text
    validation: Text | None = None
    test: Text | None = None


class Task(Section):
    """One task: rows, and how a row becomes a prompt and its completion."""

    data: Annotated[
        Annotated[Text, Tag("<file>")] | Annotated[DataFiles, Tag("<files>")],
        Discriminator(lambda value: "<files>" if isinstance(value, dict | DataFiles) else "<file>"),
    ]
    prompt: Text
    completion: Text
    metric: str = "rouge"
    normalize: bool | None = None
    """Of the metric `label`: false compares labels as they are written; None is true."""
    cluster_by: Text | None = None
    """The column that names the cluster of a row, such as its document; confidence intervals are clustered by it."""
    weight: Positive = 1.0
    system: str | None = None
    max_new_tokens: Count | None = None

    @field_validator("prompt", "completion")
    @classmethod
    def _template(cls, template: str) -> str:
        check_template(template)
        return template

    @field_validator("completion")
    @classmethod
    def _varies(cls, template: str) -> str:
        if not any(name for _, name, _, _ in string.Formatter().parse(template)):
            raise ValueError('it names no column, so every row would have the same answer; write "{label}"')
        return template

    @field_validator("metric")
    @classmethod
    def _metric(cls, metric: str) -> str:
        module, colon, function = metric.partition(":")
        is_own = colon and all(part.isidentifier() for part in (*module.split("."), function))
        if metric not in METRICS and not is_own:
            advice = metric_hint(metric)
            if path := re.fullmatch(r"(?:.*/)?(\w+)\.py:(\w+)", metric):
                advice = f"write {path[1]}:{path[2]}, and put {path[1]}.py into the working directory"
            raise ValueError(f"unknown metric {metric!r}; {advice}")
        return metric

    @field_validator("normalize")
    @classmethod
    def _normalize(cls, normalize: bool | None, info: ValidationInfo) -> bool | None:
        metric = info.data.get("metric")  # an unknown one has its own message
        if normalize is not None and metric and (":" in metric or METRICS[metric].as_written is None):
            raise ValueError(
                f"it says how the metric exact_match compares labels; the metric here is {metric}: take normalize out"
            )
        return normalize


class Split(Section):
    """Shares of the rows of a task whose rows carry no `split` column."""

    validation: Fraction = 0.1
    test: Fraction = 0.1

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no row to train on; make them smaller")
        return self


class Gate(Section):
    """What a task must gain, or what a retention eval may drop: the run ends with exit code 3 where it does not hold."""

    min_gain: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Of a task, in the unit of its metric, positive where tuned is better; -1 allows a loss of one point."""
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of a retention eval, in its unit: points, or nats per token."""
    by: Literal["ci", "point_estimate"] = "ci"
    """ci: the pessimistic bound of the 95 % confidence interval must hold it; point_estimate: the change itself."""

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if self.min_gain is not None and self.max_drop is not None:
            raise ValueError(
                "min_gain is for a task, max_drop for a retention eval; take out the one that does not fit"
            )
        if self.min_gain is None and self.max_drop is None:
            raise ValueError(
                "a task needs min_gain, as in min_gain: 5, a retention eval max_drop, as in max_drop: 0.05"
            )
        return self


class Report(Section):
    """What the report shows beside the test rows, and what it demands. `sample_prompts` is JSON Lines with `prompt` and
    perhaps `title`; `gates` are by task."""

    sample_prompts: Text | None = None
    gates: dict[str, Gate] = {}


class Pipeline(Section):
    """The `pipeline:` section."""

    tasks: Annotated[dict[Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-]+\z")], Task], Field(min_length=1)]
    mix: Literal["proportional", "equal", "temperature"] = "proportional"
    temperature: Positive = 2.0
    system: str | None = None
    chat_template: bool | None = None
    """None: the model's own where it has one."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    split: Split = Split()
    report: Report = Report()
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = 0
    """Steps whose loss or gradient is not finite that may be skipped, in all; at 0 the first one ends the training."""
    forgetting: Forgetting = Forgetting()
    continue_from: Text | None = None
    """A finished run whose tuned model this job starts from, in place of the base."""

    def system_prompt(self, task: str | None = None) -> str | None:
        """The system prompt of a task, or of prompts that belong to no task; None for none."""
        own_prompt = None if task is None else self.tasks[task].system
        return own_prompt if own_prompt is not None else self.system


@dataclass(frozen=True)
class Job:
    """A checked config. `ludwig` is everything outside `pipeline:`, with alfine's defaults filled in."""

    path: Path
    pipeline: Pipeline
    ludwig: dict[str, Any]
    document: Document = field(default_factory=Document, repr=False, compare=False)

    @property
    def base_model(self) -> str:
        """The base model as it is written: an embedded model, a hub id or a folder."""
        return str(self.ludwig["base_model"])

    @property
    def adapter(self) -> dict[str, Any] | None:
        """The section `adapter`; None where every weight is trained."""
        return self.ludwig.get("adapter") or None

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The section `quantization`, None without one. It applies to training, evaluation and `predict` alike."""
        return self.ludwig.get("quantization") or None

    @property
    def trainer(self) -> dict[str, Any]:
        """The section `trainer`, with alfine's defaults."""
        return dict(self.ludwig["trainer"])

    @property
    def generation(self) -> dict[str, Any]:
        """The section `generation`, with alfine's defaults."""
        return dict(self.ludwig["generation"])

    @property
    def backend(self) -> dict[str, Any]:
        """The section `backend`, in its long form: `{"type": "ray"}` for `backend: ray`."""
        backend = self.ludwig.get("backend") or "local"
        return {"type": backend} if isinstance(backend, str) else dict(backend)

    @property
    def max_sequence_length(self) -> int | None:
        """The number of tokens that a training example may have, None for what the model's context holds."""
        length = (self.ludwig.get("preprocessing") or {}).get("global_max_sequence_length")
        return None if length is None else int(length)

    def system_prompt(self, task: str | None = None) -> str | None:
        """The system prompt of a task, or of prompts that belong to no task; None for none."""
        return self.pipeline.system_prompt(task)

    def max_new_tokens(self, task: str | None = None) -> int:
        """The limit of a completion of a task, or of prompts that belong to no task, in tokens."""
        own_limit = None if task is None else self.pipeline.tasks[task].max_new_tokens
        return int(own_limit if own_limit is not None else self.ludwig["generation"]["max_new_tokens"])

    def line_of(self, *path: str | int) -> int | None:
        """The line of `job.line_of("pipeline", "tasks", "sentiment", "prompt")`, or of its nearest parent."""
        location = self.document.location(*path)
        return location.line if location else None

    def problem(self, message: str, *path: str | int) -> Problem:
        """A finding about the key at `path`, with its file and line (or the override that set it)."""
        return self.document.problem(message, *path)

    def resolved(self) -> dict[str, Any]:
        """The whole job, defaults of `pipeline:` written out: plain data, and a config that loads again."""
        pipeline = self.pipeline.model_dump(mode="json")
        if self.pipeline.mix != "temperature":
            del pipeline["temperature"]
        return {"pipeline": pipeline, **deepcopy(self.ludwig)}


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read and check a config; `overrides` are `key.path=value`. Raises ConfigError with all problems."""
    path = Path(path)
    document = read_yaml(path)
    for override in overrides:
        apply_override(document, override)
    rename_old_keys(document)
    hints = KeyHints({"pipeline": schema_of(Pipeline), **ludwig_fields()}, document.value)
    ludwig = {key: value for key, value in document.value.items() if key != "pipeline"}
    if tool := detect_tool(document.value):
        raise ConfigError(_foreign(tool, ludwig, document, hints))
    pipeline, problems = _pipeline(document, ludwig, hints)
    problems = [*document.problems, *problems, *check_ludwig_config(ludwig, document, hints)]
    if "base_model" not in ludwig:
        message = "base_model is missing: write base_model: smollm2-135m-instruct, or a hub id, or a folder"
        problems.append(document.problem(message))
    problems += document.empty_value_problems(problems)
    if problems or pipeline is None:
        raise ConfigError(sort_problems(problems))
    return Job(path, pipeline, _with_defaults(ludwig), document)


def _pipeline(document: Document, ludwig: dict[str, Any], hints: KeyHints) -> tuple[Pipeline | None, list[Problem]]:
    """The section `pipeline:`, None where it cannot be made, and what is wrong with it."""
    section = document.value.get("pipeline", {})
    problems: list[Problem] = []
    pipeline = None
    expanded = _expand_auto(section, ludwig)
    context = {"refused": set(strategy_conflicts(job_traits(expanded, ludwig)))}
    try:
        pipeline = Pipeline.model_validate(expanded, context=context)
    except ValidationError as error:
        found = [(error_path(details), details) for details in error.errors(include_url=False)]
        problems += [
            to_problem(details, document, hints) for path, details in found if path not in document.invalid_paths
        ]
    if isinstance(section, dict) and "temperature" in section and section.get("mix") != "temperature":
        message = "pipeline.temperature has no effect unless mix is temperature"
        problems.append(document.problem(message, "pipeline", "temperature"))
    if pipeline is not None:
        problems += _gates_without_task(pipeline, document)
        problems += _without_effect(pipeline, ludwig, document)
    return pipeline, problems


MOST_ANSWERS = 8
"""Keys of another tool that are answered one by one."""


def _foreign(tool: str, ludwig: dict[str, Any], document: Document, hints: KeyHints) -> list[Problem]:
    """What to say of another tool's config: a word on the whole, then the keys that have a counterpart here."""
    if tool == LUDWIG:
        advice = (
            "write pipeline.tasks in place of the features and the prompt, and keep adapter, trainer and generation"
        )
        features = ("input_features", "output_features", "prompt", "model_type")
        answers = check_ludwig_config(
            {key: value for key, value in ludwig.items() if key not in features}, document, hints
        )
    else:
        advice = "start from ludwig_configs/instruction.yaml and carry over what follows"
        sentences = {key: hints.foreign_key(key, value) for key, value in ludwig.items()}
        answers = [document.problem(sentence, key) for key, sentence in sentences.items() if sentence]
        answers += check_ludwig_config(
            {key: value for key, value in ludwig.items() if key in hints.fields}, document, hints
        )
    whole = document.problem(
        f'this is {tool} config, which is read by another tool; {advice} (README, "Your own data")'
    )
    answers = sort_problems([*document.problems, *answers])
    left = len(answers) - MOST_ANSWERS if tool == LUDWIG else len(ludwig) - len(answers[:MOST_ANSWERS])
    rest = [Problem(f"{left} more of its keys are not answered here", whole.file)] if left > 0 else []
    return [whole, *answers[:MOST_ANSWERS], *rest]


def _expand_auto(section: Any, ludwig: dict[str, Any]) -> Any:
    """`pipeline:` with its `auto` in place of which another word stands for this job."""
    if not isinstance(section, dict):
        return section
    forgetting = section.get("forgetting", {})
    forgetting = {"strategy": forgetting} if isinstance(forgetting, str) else forgetting
    strategy = forgetting.get("strategy", "auto") if isinstance(forgetting, dict) else None
    if not isinstance(strategy, str):
        return section
    word = resolve_auto(adapter=ludwig.get("adapter") is not None, continued=section.get("continue_from") is not None)
    return {**section, "forgetting": {**forgetting, "strategy": re.sub(r"\bauto\b", word, strategy)}}


def _gates_without_task(pipeline: Pipeline, document: Document) -> list[Problem]:
    problems = []
    for name, gate in pipeline.report.gates.items():
        kind, known = (
            ("task", list(pipeline.tasks))
            if gate.max_drop is None
            else ("retention eval", pipeline.forgetting.eval_names)
        )
        earlier = kind == "retention eval" and pipeline.continue_from is not None and "/" in name
        if name not in known and not earlier:
            near = did_you_mean(name, known)
            advice = f"did you mean {near}?" if near else f"the {kind}s are {', '.join(known) or 'none'}"
            message = f"pipeline.report.gates.{name}: there is no such {kind}; {advice}"
            problems.append(document.problem(message, "pipeline", "report", "gates", name))
    return problems


def _without_effect(pipeline: Pipeline, ludwig: dict[str, Any], document: Document) -> list[Problem]:
    """What stands in `pipeline:` and contradicts the rest of the job, or would change nothing in it."""
    forgetting = pipeline.forgetting
    traits = job_traits(_expand_auto(document.value["pipeline"], ludwig), ludwig)
    conflicts = strategy_conflicts(traits)
    problems = [
        document.problem(f"pipeline.forgetting.strategy: {conflicts[name]}", "pipeline", "forgetting", "strategy")
        for name in forgetting.strategies
        if name in conflicts
    ]
    if pipeline.split != Split() and all(isinstance(task.data, DataFiles) for task in pipeline.tasks.values()):
        message = "pipeline.split has no effect where every task names a file for each split; take it out"
        problems.append(document.problem(message, "pipeline", "split"))
    for strategy, key, reason in forgetting.unused_settings(traits):
        message = f"pipeline.forgetting.{strategy}.{key} has no effect {reason}"
        problems.append(document.problem(message, "pipeline", "forgetting", strategy, key))
    return problems


def check_template(template: str) -> None:
    """Raises ValueError unless every brace in `template` is a `{column}` or a literal `{{` or `}}`."""
    advice = 'write "{column}" for a column, "{{" and "}}" for braces'
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        opened = re.search(r"(?<!\{)(?:\{\{)*(\{[^{}]*)\Z", template)
        what = f"{opened[1][:30]!r} is not closed" if opened else "a } has no { before it"
        raise ValueError(f"{what}; {advice}") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.strip() or name != name.strip() or spec or conversion or re.search(r"[{}\n]", name):
            written = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise ValueError(f"{written[:40]!r} is not a column; {advice}")


def _with_defaults(ludwig: dict[str, Any]) -> dict[str, Any]:
    # Ludwig's own would train nothing (trainer.type none), one row a step, 100 epochs, and sample the answers.
    filled = {"model_type": "llm", **deepcopy(ludwig)}
    length = {} if filled.get("trainer", {}).get("train_steps") else {"epochs": 3}
    filled["trainer"] = {"type": "finetune", **length, "batch_size": 8, **filled.get("trainer", {})}
    filled["generation"] = {"do_sample": False, "max_new_tokens": 128, **filled.get("generation", {})}
    return filled
