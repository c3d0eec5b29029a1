"""A task of the section `pipeline:`: its rows, how they become prompts and completions, and how these are scored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.config.base import Count, Positive, Section, Text
from pipelines.config.data_files import Data
from pipelines.config.jinja_templates import jinja_template
from pipelines.config.templates import check_template, column_of, placeholders
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


def _check_column(name: str) -> str:
    column = column_of(name) or column_of(name.replace("{{", "{").replace("}}", "}"))
    if column is not None:
        raise ValueError(f"it is the name of a column, not a template; write {column.strip()}")
    return name


TooLong = Literal["refuse", "drop", "truncate_prompt"]
"""What happens to rows with more tokens than the limit."""


def _check_row_limit(limit: object) -> object:
    if isinstance(limit, float):
        raise ValueError(f"expected a whole number, found {limit:g}; write a number of rows, or all")
    if limit != "all" and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError("expected a number of rows, at least 1, or all")
    return limit


RowLimit = Annotated[Annotated[int, Field(ge=1)] | Literal["all"], BeforeValidator(_check_row_limit)]
"""How many rows of a split are evaluated."""

NumExamples = Annotated[int, Field(ge=0, le=32)]


def _check_distinct(numbers: list[int]) -> list[int]:
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a number is there twice; write [{', '.join(map(str, sorted(set(numbers))))}]")
    return sorted(numbers)


NumbersOfExamples = Annotated[
    list[Annotated[int, Field(ge=1, le=32)]],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_check_distinct),
]
"""Numbers of examples, of which the one with the best score on training rows is taken."""
Examples = Annotated[
    Annotated[NumExamples, Tag("<count>")] | Annotated[NumbersOfExamples, Tag("<counts>")],
    Discriminator(lambda value: "<counts>" if isinstance(value, list) else "<count>"),
]
"""How many training rows are examples in a prompt, or several numbers to choose from."""


class FewShotSettings(Section):
    """What the base is given in its prompt, for the third column of the report."""

    k: Examples = Field(
        default=4,
        description="Training rows as examples in the prompt, 0 for none; or a list such as [2, 4, 8], of which the "
        "number with the best score on other training rows is taken.",
    )
    instruction: Text | None = Field(
        default=None, description="Text that is added to the system turn, such as a description of the answer."
    )

    def __bool__(self) -> bool:
        """Whether the base is given anything."""
        return bool(self.k or self.instruction)

    @property
    def choices(self) -> list[int]:
        """The numbers of examples to choose from; empty if the number is given."""
        return self.k if isinstance(self.k, list) and len(self.k) > 1 else []

    @property
    def max_k(self) -> int:
        """The most examples that a prompt may have."""
        return max(self.k) if isinstance(self.k, list) else self.k

    def with_k(self, k: int) -> FewShotSettings:
        """The same settings with a number of examples."""
        return self.model_copy(update={"k": k})


def _few_shot_tag(value: object) -> str:
    if isinstance(value, dict | FewShotSettings):
        return "<section>"
    return "<counts>" if isinstance(value, list) else "<count>"


FewShot = Annotated[
    Annotated[NumExamples, Tag("<count>")]
    | Annotated[NumbersOfExamples, Tag("<counts>")]
    | Annotated[FewShotSettings, Tag("<section>")],
    Discriminator(_few_shot_tag),
]
"""How many training rows are examples in the prompt of the base, several numbers to choose from, or a section with an
instruction as well."""

ColumnName = Annotated[Text, AfterValidator(_check_column)]
"""The name of a column of the rows."""


class Task(Section):
    """One task: its rows, and the templates or columns that make a prompt and a completion, or a conversation, of a
    row. Without any of them the columns of the first row decide, see `data.detection`."""

    data: Data = Field(
        description="Rows: a file, a pattern, a folder, `hub:OWNER/NAME`, a list of these, or one of them per split."
    )
    template: Literal["column", "jinja"] = Field(
        default="column", description="Language of prompt, completion and system: `{column}`, or Jinja."
    )
    prompt: Text | None = Field(
        default=None, description="Template of the prompt; `{column}` is replaced by the row's value."
    )
    completion: Text | None = Field(
        default=None, description="Template of the completion that the model is trained on."
    )
    messages: ColumnName | None = Field(
        default=None, description="Column with a conversation, instead of `prompt` and `completion`."
    )
    history: ColumnName | None = Field(
        default=None, description="Column with the earlier turns of a prompt, as a list of [prompt, answer] pairs."
    )
    tools: ColumnName | None = Field(
        default=None, description="Column with the JSON schemas of the tools that a conversation may call."
    )
    train_on: Text = Field(
        default="all",
        description="Turns of the assistant that are trained: all, last, or those that a column names.",
    )
    evaluate_on: Literal["last", "all"] = Field(
        default="last",
        description="Turns of a test row that are evaluated: the last trained one, or each, given the turns before it.",
    )
    metric: str = Field(default="rouge", description="Name of a metric, or `module:function` of the working directory.")
    normalize: bool | None = Field(
        default=None, description="Whether exact_match ignores case and punctuation; None is true."
    )
    cluster_by: Text | None = Field(
        default=None,
        description="Column with the cluster of a row, such as its document; confidence intervals are clustered.",
    )
    weight: Positive = Field(default=1.0, description="Factor on the task's share of the training rows.")
    system: str | None = Field(
        default=None, description="Template of the task's system prompt; None is `pipeline.system`."
    )
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

    test_rows: RowLimit | None = Field(
        default=None, description="Test rows that are evaluated; None is `report.test_rows`."
    )
    validation_rows: RowLimit | None = Field(
        default=None, description="Validation rows that are evaluated; None is `report.validation_rows`."
    )

    few_shot: FewShot | None = Field(
        default=None, description="What the base is given in its prompt; None is `report.few_shot`."
    )

    @field_validator("prompt", "completion", "system")
    @classmethod
    def _check_template(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is not None and info.data.get("template") == "jinja":
            jinja_template(template)
        elif template is not None and info.field_name != "system":  # braces that name no column are its text
            check_template(template)
        return template

    @field_validator("reasoning", mode="before")
    @classmethod
    def _check_reasoning(cls, template: object, info: ValidationInfo) -> object:
        if template is None or isinstance(template, bool):
            return template
        if not isinstance(template, str) or not template.strip():
            raise ValueError('expected a template, as in "{reasoning}", true or false')
        check_template(template)
        if not placeholders(template):
            raise ValueError('it contains no column, so every thought would be the same; write "{reasoning}"')
        return template

    @field_validator("completion")
    @classmethod
    def _check_completion_varies(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            return None
        is_jinja = info.data.get("template") == "jinja"
        if is_jinja and "{{" not in template:
            raise ValueError('it prints no column, so every completion would be the same; write "{{ label }}"')
        if not is_jinja and not placeholders(template):
            column = re.search(r"\{\{\s*([A-Za-z_]\w*)", template)
            hint = f'"{{{column[1]}}}", or template: jinja' if column else '"{label}"'
            raise ValueError(f"it contains no column, so every completion would be the same; write {hint}")
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

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        """A conversation comes from `messages`, or from `prompt` and `completion`."""
        if self.messages is not None and (other := self._given("prompt", "completion", "history")):
            raise ValueError(f"messages and {other} exclude each other; remove one of them")
        if self.prompt is None and (other := self._given("completion", "history")):
            example = "{question}" if self.template == "column" else "{{ question }}"
            raise ValueError(f'{other} needs prompt; write prompt: "{example}", or messages: COLUMN')
        if self.prompt is not None and self.completion is None:
            example = "{label}" if self.template == "column" else "{{ label }}"
            raise ValueError(f'completion is missing, as in completion: "{example}"')
        if self.template == "jinja" and not self._given("prompt", "system"):
            raise ValueError("template: jinja has no effect without prompt and completion; write them, or remove it")
        if self.has_text_templates and (other := self._set_to_no_effect()):
            raise ValueError(f"{other} has no effect on a prompt and a completion of text; remove it")
        return self

    @property
    def has_text_templates(self) -> bool:
        """Whether a row is surely one prompt and one completion: no template is a single column, which may hold a
        conversation."""
        templates = (self.prompt, self.completion)
        return (
            self.prompt is not None
            and self.history is None
            and (self.template == "jinja" or not any(text and column_of(text) for text in templates))
        )

    def _given(self, *keys: str) -> str | None:
        """The first of `keys` that the task has."""
        return next((key for key in keys if getattr(self, key) is not None), None)

    def _set_to_no_effect(self) -> str | None:
        """The first key that only acts on conversations and has another value than its default."""
        defaults: dict[str, Any] = {"train_on": "all", "evaluate_on": "last"}
        return next((key for key, default in defaults.items() if getattr(self, key) != default), None)
