"""The objects of `export.json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipelines.storage.records import RecordBase, UncheckedFloat


class ExportedFile(RecordBase):
    """A file of an export."""

    name: str = Field(description="Path in the export's folder.")
    size: int = Field(description="Size in bytes.")
    sha256: str = Field(description="SHA-256 of the content.")


class ExportedBase(RecordBase):
    """The base of the tuned model."""

    name: str = Field(description="Id on the Hub, or name of a folder or run that is not on the Hub.")
    revision: str | None = Field(description="Commit on the Hub; null if it is not known.")
    on_hub: bool = Field(description="Whether `name` is an id on the Hub.")
    content: str = Field(description="Fingerprint of the base's files.")


class TaskCheck(RecordBase):
    """The scores of the run's answers and of the export's on the same rows of a task."""

    n: int = Field(description="Number of rows that were scored on both.")
    title: str = Field(description="Name of the metric for readers.")
    unit: str = Field(description="Unit of the scores: %, points or nats/token.")
    higher_is_better: bool = Field(description="Whether a higher score is better.")
    run: UncheckedFloat = Field(description="Mean score of the run's answers.")
    export: UncheckedFloat = Field(description="Mean score of the export's answers.")
    delta: UncheckedFloat = Field(description="Difference export - run.")
    ci95: tuple[UncheckedFloat, UncheckedFloat] = Field(description="Paired 95 % confidence interval of delta.")
    equal_answers: int = Field(description="Number of answers that equal the run's.")
    answers: int = Field(description="Number of answers.")


class ExportCheck(RecordBase):
    """The result of asking an export the test prompts of its run."""

    engine: str = Field(description="Program that loaded the export.")
    engine_versions: dict[str, str] = Field(description="Versions of the engine's packages.")
    device: str = Field(description="Device of the engine.")
    must_be_equal: bool = Field(description="Whether every answer must equal the run's, token by token.")
    reference: str = Field(description="What the answers are compared with.")
    rows: int = Field(description="Number of test rows.")
    equal_prompts: int = Field(description="Number of prompts that the export tokenizes as the run did.")
    unequal_prompts: list[str] = Field(description="The first prompts that it does not, with the reason.")
    equal_answers: int = Field(description="Number of answers with the text, tokens and end of the run's.")
    ties: int = Field(
        description="Number of other answers whose first different token is as likely as the run's, up to rounding; "
        "counted if the answers must be equal."
    )
    first_difference_median: float | None = Field(
        description="Median index, from 1, of the first different token of answers that differ; null if none does."
    )
    token_agreement: UncheckedFloat = Field(
        description="Percentage of the tokens of the run's answers that are the export's most likely ones after the "
        "same tokens."
    )
    tasks: dict[str, TaskCheck] = Field(description="Scores by task.")
    margin: float = Field(description="Decline in points beyond which a score must not lie significantly.")
    passed: bool = Field(description="Whether the check passed.")
    problems: list[str] = Field(description="Why it did not pass, as sentences.")
    seconds: float = Field(description="Duration in seconds.")


class ExportRecord(RecordBase):
    """`export.json`."""

    format_version: int = Field(description="Version of this format.")
    target: str = Field(description="Kind of export.")
    dtype: str | None = Field(description="Dtype or quantization of the weights; null for an adapter.")
    run: str = Field(description="Name of the run.")
    model: str = Field(description="Fingerprint of the tuned model in the run.")
    base: ExportedBase = Field(description="Base of the tuned model.")
    chat_template_variables: dict[str, dict[str, Any]] = Field(
        description="Variables of the chat template that a task needs besides those that the template fixes."
    )
    notes: list[str] = Field(description="What a user should know, as sentences.")
    versions: dict[str, str] = Field(description="Versions of the packages that wrote the export.")
    check: ExportCheck | None = Field(description="Result of the check; null if the export was not checked.")
    files: list[ExportedFile] = Field(description="Files of the export but export.json.")
