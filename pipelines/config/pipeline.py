"""The section `pipeline:` of a config. Everything else in a config belongs to Ludwig."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.config.base import Count, Fraction, Name, Positive, Section, Text
from pipelines.config.data_files import Data
from pipelines.config.forgetting import Forgetting
from pipelines.config.hardware import HardwareSettings
from pipelines.scoring.metric import METRICS, metric_hint

RESERVED_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize")
"""Names that `chat_template_kwargs` cannot set: alfine passes them itself, or the tokenizer takes them."""


def _check_template_variables(variables: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in variables:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not the name of a variable; write a name as in enable_thinking: false")
        if name in RESERVED_VARIABLES:
            raise ValueError(f"{name} is set by alfine; remove it")
    return variables


TemplateVariables = Annotated[dict[str, JsonValue], AfterValidator(_check_template_variables)]
"""Variables of a chat template, as JSON values."""


TooLong = Literal["refuse", "drop", "truncate_prompt"]
"""What happens to rows with more tokens than the limit."""


class Task(Section):
    """One task: its rows, and the templates that make a prompt and a completion of a row."""

    data: Data = Field(
        description="Rows: a file, a pattern, a folder, `hub:OWNER/NAME`, a list of these, or one of them per split."
    )
    prompt: Text = Field(description="Template of the prompt; `{column}` is replaced by the row's value.")
    completion: Text = Field(description="Template of the completion that the model is trained on.")
    metric: str = Field(default="rouge", description="Name of a metric, or `module:function` of the working directory.")
    normalize: bool | None = Field(
        default=None, description="Whether exact_match ignores case and punctuation; None is true."
    )
    cluster_by: Text | None = Field(
        default=None,
        description="Column with the cluster of a row, such as its document; confidence intervals are clustered.",
    )
    weight: Positive = Field(default=1.0, description="Factor on the task's share of the training rows.")
    system: str | None = Field(default=None, description="System prompt of the task; None is `pipeline.system`.")
    reasoning: str | bool | None = Field(
        default=None,
        description="Template of the thought before the completion; true for the column `reasoning` and thoughts at "
        "the start of completions, false to leave thoughts out; None is true if the first rows have some.",
    )
    max_new_tokens: Count | None = Field(
        default=None, description="Token limit of the task's answers; None is `generation.max_new_tokens`."
    )
    max_reasoning_tokens: Count | None = Field(
        default=None,
        description="Token limit of the thought before an answer, added to `max_new_tokens`; None is "
        "`pipeline.max_reasoning_tokens`.",
    )
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="Variables of the chat template for this task, over `pipeline.chat_template_kwargs`."
    )

    too_long: TooLong | None = Field(
        default=None, description="What happens to rows that are longer than the limit; None is `pipeline.too_long`."
    )

    @field_validator("prompt", "completion")
    @classmethod
    def _check_template(cls, template: str) -> str:
        check_template(template)
        return template

    @field_validator("reasoning", mode="before")
    @classmethod
    def _check_reasoning(cls, template: object) -> object:
        if template is None or isinstance(template, bool):
            return template
        if not isinstance(template, str) or not template.strip():
            raise ValueError('expected a template, as in "{reasoning}", true or false')
        check_template(template)
        if not any(name for _, name, _, _ in string.Formatter().parse(template)):
            raise ValueError('it contains no column, so every thought would be the same; write "{reasoning}"')
        return template

    @field_validator("completion")
    @classmethod
    def _check_completion_varies(cls, template: str) -> str:
        if not any(name for _, name, _, _ in string.Formatter().parse(template)):
            raise ValueError('it contains no column, so every completion would be the same; write "{label}"')
        return template

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        module, colon, function = metric.partition(":")
        is_custom = colon and all(part.isidentifier() for part in (*module.split("."), function))
        if metric not in METRICS and not is_custom:
            hint = metric_hint(metric)
            if path := re.fullmatch(r"(?:.*/)?(\w+)\.py:(\w+)", metric):
                hint = f"write {path[1]}:{path[2]}, and put {path[1]}.py into the working directory"
            raise ValueError(f"unknown metric {metric!r}; {hint}")
        return metric

    @field_validator("normalize")
    @classmethod
    def _check_normalize(cls, normalize: bool | None, info: ValidationInfo) -> bool | None:
        metric = info.data.get("metric", "exact_match")  # an invalid metric is reported by its own validator
        if normalize is not None and metric != "exact_match":
            raise ValueError(f"it has no effect on the metric {metric}, only on exact_match; remove it")
        return normalize


class Split(Section):
    """The split of the rows of a task that have no column `split`."""

    validation: Fraction = Field(default=0.1, description="Fraction of the rows for validation.")
    test: Fraction = Field(default=0.1, description="Fraction of the rows for the test.")

    @model_validator(mode="after")
    def _check_training_rows_remain(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must add up to less than 1, so that training rows remain")
        return self


class Gate(Section):
    """A requirement on the result of a task or a retention eval; a run that fails one exits with code 3."""

    min_gain: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None,
        description="Minimum improvement of a task, in the unit of its metric; positive if the tuned model is better.",
    )
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Maximum regression of a retention eval, in its unit: points, or nats per token."
    )
    by: Literal["ci", "point_estimate"] = Field(
        default="ci",
        description="ci: the pessimistic bound of the 95 % confidence interval decides; point_estimate: the change.",
    )

    @model_validator(mode="after")
    def _check_one_condition(self) -> Self:
        if self.min_gain is not None and self.max_drop is not None:
            raise ValueError("min_gain is for a task, max_drop for a retention eval; remove one of them")
        if self.min_gain is None and self.max_drop is None:
            raise ValueError(
                "a task requires min_gain, as in min_gain: 5; a retention eval max_drop, as in max_drop: 0.05"
            )
        return self


class ReportSettings(Section):
    """Additional contents of the report, and the gates."""

    sample_prompts: Text | None = Field(
        default=None,
        description="JSON Lines file with `prompt` and optionally `title`; the report shows both models' completions.",
    )
    gates: dict[str, Gate] = Field(default={}, description="Gates by task or retention eval.")


class PipelineSettings(Section):
    """The section `pipeline:`."""

    tasks: Annotated[dict[Name, Task], Field(min_length=1)] = Field(description="Tasks by name.")
    mix: Literal["proportional", "equal", "temperature"] = Field(
        default="proportional", description="How the tasks share the training rows of an epoch."
    )
    temperature: Positive = Field(default=2.0, description="Temperature of `mix: temperature`; 1 is proportional.")
    system: str | None = Field(default=None, description="System prompt of all tasks that have none of their own.")
    chat_template: (
        Annotated[
            Annotated[bool, Tag("<flag>")] | Annotated[Text, Tag("<file>")],
            Discriminator(lambda value: "<file>" if isinstance(value, str) else "<flag>"),
        ]
        | None
    ) = Field(
        default=None,
        description="Whether prompts use the model's chat template, or the Jinja file of another template; None uses "
        "the model's if it has one.",
    )
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="Variables of the chat template, such as enable_thinking."
    )
    max_reasoning_tokens: Count | None = Field(
        default=None,
        description="Token limit of the thought before an answer, added to `max_new_tokens`; None is 1,024 for prompts "
        "that ask for reasoning, else 0.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=42, description="Seed of mixing, training and sampling; splits do not depend on it."
    )
    too_long: TooLong = Field(
        default="refuse",
        description="What happens to rows that are longer than the limit: refuse stops; drop leaves them out; "
        "truncate_prompt shortens the last user turn.",
    )
    split: Split = Field(default=Split(), description="Split of the rows without a column `split`.")
    report: ReportSettings = Field(default=ReportSettings(), description="Contents and gates of the report.")
    hardware: HardwareSettings = Field(
        default=HardwareSettings(), description="Device, precision and attention; the defaults fit the machine."
    )
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Number of steps with a NaN or infinite loss or gradient that are skipped before training stops.",
    )
    forgetting: Forgetting = Field(
        default=Forgetting(), description="Retention evals, and strategies against forgetting."
    )
    continue_from: Text | None = Field(
        default=None,
        description="Folder of a finished run whose tuned model this job starts from, instead of the base model.",
    )

    def system_prompt(self, task: str | None = None) -> str | None:
        """The system prompt of a task, or of prompts that belong to no task; None for none."""
        task_prompt = None if task is None else self.tasks[task].system
        return task_prompt if task_prompt is not None else self.system


def check_template(template: str) -> None:
    """Raises ValueError unless every brace in `template` is a `{column}` or a literal `{{` or `}}`."""
    hint = 'write "{column}" for a column, "{{" and "}}" for braces'
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        unclosed = re.search(r"(?<!\{)(?:\{\{)*(\{[^{}]*)\Z", template)
        message = f"{unclosed[1][:30]!r} is not closed" if unclosed else "a } has no { before it"
        raise ValueError(f"{message}; {hint}") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.strip() or name != name.strip() or spec or conversion or re.search(r"[{}\n]", name):
            placeholder = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise ValueError(f"{placeholder[:40]!r} is not a column; {hint}")
