"""The section `pipeline:` of a config. Everything else in a config belongs to Ludwig."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipelines.config.base import Count, Fraction, Name, Positive, Section, Text
from pipelines.config.forgetting import Forgetting
from pipelines.config.hardware import HardwareSettings
from pipelines.config.task import FewShot, FewShotSettings, RowLimit, Task, TemplateVariables, TooLong

DEFAULT_FEW_SHOT = 4
"""Examples in the prompt of the base, unless the config says otherwise."""
DEFAULT_ROWS = 1000
"""Test and validation rows of a task that are evaluated, unless the config says otherwise."""


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
    min_gain_beyond_few_shot: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None,
        description="Minimum improvement of a task over the base with examples in its prompt, see `report.few_shot`.",
    )
    by: Literal["ci", "point_estimate"] = Field(
        default="ci",
        description="ci: the pessimistic bound of the 95 % confidence interval decides; point_estimate: the change.",
    )

    @model_validator(mode="after")
    def _check_one_condition(self) -> Self:
        task_key = "min_gain" if self.min_gain is not None else "min_gain_beyond_few_shot"
        is_for_task = self.min_gain is not None or self.min_gain_beyond_few_shot is not None
        if is_for_task and self.max_drop is not None:
            raise ValueError(f"{task_key} is for a task, max_drop for a retention eval; remove one of them")
        if not is_for_task and self.max_drop is None:
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
    test_rows: RowLimit = Field(
        default=DEFAULT_ROWS,
        description="Test rows per task that are evaluated, drawn at random from all; or all.",
    )
    validation_rows: RowLimit = Field(
        default=DEFAULT_ROWS,
        description="Validation rows per task that are evaluated during training, drawn at random from all; or all.",
    )
    few_shot: FewShot = Field(
        default=DEFAULT_FEW_SHOT,
        description="Training rows in the prompt of the base that the tuned model is also compared with, 0 for none; "
        "a list of numbers to choose from; or a section with k and an instruction.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0,
        description="Seed by which test rows, validation rows and examples in prompts are drawn; `pipeline.seed` has "
        "no effect on them, so that runs with different seeds are compared on the same rows.",
    )


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

    def few_shot(self, task: Task) -> FewShotSettings:
        """What the base is given in the prompts of a task, for the third column of the report."""
        setting = self.report.few_shot if task.few_shot is None else task.few_shot
        return setting if isinstance(setting, FewShotSettings) else FewShotSettings(k=setting)

    def row_limit(self, task: Task, split: str) -> int | None:
        """How many rows of the validation or test split of a task are evaluated; None for all of them."""
        own, common = (
            (task.test_rows, self.report.test_rows)
            if split == "test"
            else (task.validation_rows, self.report.validation_rows)
        )
        limit = common if own is None else own
        return None if limit == "all" else limit

    def system_prompt(self, task: str | None = None) -> str | None:
        """The system prompt of a task, or of prompts that belong to no task; None for none."""
        task_prompt = None if task is None else self.tasks[task].system
        return task_prompt if task_prompt is not None else self.system
