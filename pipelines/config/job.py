"""Loads a config and checks all of it. The section `pipeline:` is alfine's, the rest is an ordinary Ludwig config.

Imports neither Ludwig nor torch, and reads no data file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.config.chat_template import ChatTemplateSettings, read_template_file
from pipelines.config.foreign_config import foreign_config_problems
from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_checks import check_ludwig_config
from pipelines.config.other_tools import detect_tool
from pipelines.config.overrides import apply_override
from pipelines.config.pipeline import PipelineSettings, TooLong
from pipelines.config.pipeline_checks import parse_pipeline
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.renamed_keys import rename_old_keys
from pipelines.config.schema import ludwig_fields
from pipelines.config.yaml_parser import read_yaml
from pipelines.config.yaml_source import Document, sort_problems
from pipelines.errors import ConfigError, Problem

DEFAULT_REASONING_TOKENS = 1024
"""The limit of a thought if the config has none and the prompt asks for reasoning."""
THINKING_VARIABLES = ("enable_thinking", "thinking")
"""Variables of chat templates that switch a model's thought on."""
CONFIG_FILE, TEMPLATE_FILE = "config.yaml", "chat_template.jinja"
"""Files in the folder of a run: its config with all defaults, and a copy of the file in `pipeline.chat_template`."""


@dataclass(frozen=True)
class Job:
    """A valid config.

    path: the file that it is loaded from.
    pipeline: the section `pipeline:`.
    ludwig: everything else, with alfine's defaults.
    overrides: the overrides `key.path=value` that are part of it.
    document: the source locations of all keys.
    template_source: the text of the Jinja file in `pipeline.chat_template`, None without one.
    prompt_date: the date that chat templates see as today's, in ISO 8601. It is that on which the rows of the run were
        prepared; None before that, which is the present day.
    """

    path: Path
    pipeline: PipelineSettings
    ludwig: dict[str, Any]
    overrides: tuple[str, ...] = ()
    document: Document = field(default_factory=Document, repr=False, compare=False)
    template_source: str | None = None
    prompt_date: str | None = None

    @property
    def base_model(self) -> str:
        """The base model as it is written: a packaged model, a hub id or a folder."""
        return str(self.ludwig["base_model"])

    @property
    def adapter(self) -> dict[str, Any] | None:
        """The section `adapter`; None if every weight is trained."""
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
        """The limit of an answer of a task, or of prompts that belong to no task, in tokens."""
        own_limit = None if task is None else self.pipeline.tasks[task].max_new_tokens
        return int(own_limit if own_limit is not None else self.ludwig["generation"]["max_new_tokens"])

    def completion_limit(
        self, task: str | None = None, *, with_reasoning: bool, max_new_tokens: int | None = None
    ) -> int:
        """The limit of a completion in tokens: that of the answer and that of the thought before it.

        with_reasoning: whether the rows of the task have reasoning; a chat template may ask for it as well.
        max_new_tokens: the limit of the answer of a row that has its own.
        """
        reasoning = None if task is None else self.pipeline.tasks[task].max_reasoning_tokens
        if reasoning is None:
            reasoning = self.pipeline.max_reasoning_tokens
        if reasoning is None:
            kwargs = self.chat_template_kwargs(task)
            asked = with_reasoning or any(kwargs.get(name) is True for name in THINKING_VARIABLES)
            reasoning = DEFAULT_REASONING_TOKENS if asked else 0
        return (max_new_tokens or self.max_new_tokens(task)) + reasoning

    def too_long(self, task: str) -> TooLong:
        """What happens to rows of a task that are longer than the limit."""
        return self.pipeline.tasks[task].too_long or self.pipeline.too_long

    def chat_template_settings(self) -> ChatTemplateSettings:
        """How prompts are rendered. The variables of a task are in `chat_template_kwargs`."""
        setting = self.pipeline.chat_template
        enabled = True if self.template_source is not None else setting if isinstance(setting, bool) else None
        return ChatTemplateSettings(
            enabled, self.template_source, dict(self.pipeline.chat_template_kwargs), self.prompt_date
        )

    def chat_template_kwargs(self, task: str | None = None) -> dict[str, Any]:
        """The variables of the chat template for a task, or for prompts that belong to no task."""
        own = {} if task is None else self.pipeline.tasks[task].chat_template_kwargs
        return {**self.pipeline.chat_template_kwargs, **own}

    def line_of(self, *path: str | int) -> int | None:
        """The line of the key at `path`, or of its nearest parent that is in the file."""
        location = self.document.location(*path)
        return location.line if location else None

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem at the key at `path`, with its file and line, or the override that sets it."""
        return self.document.problem(message, *path)

    def resolved(self) -> dict[str, Any]:
        """The config with all defaults, as plain data. It can be loaded again."""
        pipeline = self.pipeline.model_dump(mode="json")
        if self.pipeline.mix != "temperature":
            del pipeline["temperature"]
        return {"pipeline": pipeline, **deepcopy(self.ludwig)}


def load_job(path: str | Path, overrides: Sequence[str] = (), template_file: Path | None = None) -> Job:
    """Loads and checks a config.

    overrides: `key.path=value`, applied in order.
    template_file: read instead of the Jinja file that `pipeline.chat_template` names, if that names one.
    Raises ConfigError with all problems of the config.
    """
    path = Path(path)
    document = read_yaml(path)
    for override in overrides:
        apply_override(document, override)
    return job_from_document(document, path, overrides, template_file)


def job_from_document(
    document: Document, path: Path, overrides: Sequence[str] = (), template_file: Path | None = None
) -> Job:
    """Checks a parsed config.

    path: the file that it is loaded from.
    overrides: those that the document contains already.
    template_file: as in `load_job`.
    Raises ConfigError with all problems of the config.
    """
    rename_old_keys(document)
    hints = KeyHints({"pipeline": schema_of(PipelineSettings), **ludwig_fields()}, document.value)
    ludwig = {key: value for key, value in document.value.items() if key != "pipeline"}
    if tool := detect_tool(document.value):
        raise ConfigError(foreign_config_problems(tool, ludwig, document, hints))
    pipeline, problems = parse_pipeline(document, ludwig, hints)
    problems = [*document.problems, *problems, *check_ludwig_config(ludwig, document, hints)]
    if "base_model" not in ludwig:
        message = "base_model is missing: write base_model: smollm2-135m-instruct, or a hub id, or a folder"
        problems.append(document.problem(message))
    problems += document.empty_value_problems(problems)
    source = None
    if pipeline is not None and isinstance(pipeline.chat_template, str):
        try:
            source = read_template_file(template_file or Path(pipeline.chat_template))
        except ConfigError as error:
            problems.append(document.problem(f"pipeline.chat_template: {error}", "pipeline", "chat_template"))
    if problems or pipeline is None:
        raise ConfigError(sort_problems(problems))
    return Job(path, pipeline, _with_defaults(ludwig), tuple(overrides), document, source)


def load_run_job(folder: Path) -> Job:
    """Loads the job of a run from the folder of the run, with the date and the template that its rows were prepared
    with. Raises ConfigError."""
    job = load_job(folder / CONFIG_FILE, template_file=folder / TEMPLATE_FILE)
    manifest = folder / "manifest.json"
    date = json.loads(manifest.read_text(encoding="utf-8")).get("prompt_date") if manifest.is_file() else None
    return replace(job, prompt_date=date)


def _with_defaults(ludwig: dict[str, Any]) -> dict[str, Any]:
    """The Ludwig part with alfine's defaults.

    Ludwig's own defaults would train nothing (trainer.type none) or 100 epochs with one row per step, and sample
    completions.
    """
    filled = {"model_type": "llm", **deepcopy(ludwig)}
    duration = {} if filled.get("trainer", {}).get("train_steps") else {"epochs": 3}
    filled["trainer"] = {"type": "finetune", **duration, "batch_size": 8, **filled.get("trainer", {})}
    filled["generation"] = {"do_sample": False, "max_new_tokens": 128, **filled.get("generation", {})}
    return filled
