"""The JSON objects of a run folder: the same pydantic models write them and read them.

`manifest.json`, `model/training.json` and the JSON Lines files of completions, sample prompts and retention evals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticKnownError

from pipelines.storage.files import read_jsonl, write_jsonl

RECORDS_FORMAT = 2
"""Part of the keys of cached records: incremented when the keys of a record change."""

REJECT_NONFINITE = {"reject_nonfinite": True}
"""Validation context of readers: a NaN or infinite measurement is an error. Writers store what was measured."""


def replace_surrogates(text: Any) -> Any:
    """Replaces each unpaired surrogate by U+FFFD, since UTF-8 cannot encode it. Leaves other values as they are."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if isinstance(text, str) else text


def _check_finite(value: float, info: ValidationInfo) -> float:
    if info.context is REJECT_NONFINITE and not math.isfinite(value):
        raise PydanticKnownError("finite_number")
    return value


ModelText = Annotated[str, BeforeValidator(replace_surrogates)]
"""Text that a model or a user wrote."""
UncheckedFloat = Annotated[float, Field(allow_inf_nan=True)]
"""A number that readers accept even if it is NaN or infinite."""
Measurement = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_check_finite)]
"""A measured number, NaN or infinite if the training diverged."""


REASONING = "Reasoning before the answer, without its markers; null if there is none."
REASONING_CUT = "Whether the completion was cut inside its reasoning, so that it has no answer."
NUM_REASONING_TOKENS = "Number of generated tokens before the answer: the reasoning and its markers."


class RecordBase(BaseModel):
    """Base of the objects of a run folder. Unknown keys are kept, so that older readers accept newer files."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)


class CompletionRecord(RecordBase):
    """A line of `base/completions.jsonl` and `tuned/completions.jsonl`."""

    task: str = Field(description="Name of the task.")
    row: int = Field(description="Line of the row in its data file, from 1.")
    prompt: ModelText = Field(description="Prompt, before the chat template.")
    reference: ModelText = Field(description="Expected completion.")
    reference_reasoning: ModelText | None = Field(
        default=None, description="Reasoning of the row before its completion; null if there is none."
    )
    completion: ModelText = Field(description="Generated completion: the answer, without the reasoning before it.")
    reasoning: ModelText | None = Field(default=None, description=REASONING)
    reasoning_cut: bool = Field(default=False, description=REASONING_CUT)
    num_reasoning_tokens: int = Field(default=0, description=NUM_REASONING_TOKENS)
    reference_nll: Measurement | None = Field(
        description="Mean negative log-likelihood of the reference, in nats per token; null if it was not measured."
    )
    num_reference_tokens: int | None = Field(default=None, description="Number of tokens of the reference.")
    num_generated_tokens: int = Field(description="Number of generated tokens.")
    finish_reason: Literal["stop", "length"] = Field(
        description="Reason for the end of the completion: a stop token, or the limit on its length."
    )
    fields: dict[str, Any] = Field(default={}, description="All columns of the row.")


class FewShotTask(RecordBase):
    """A line of `few_shot/tasks.jsonl`: the examples that the prompts of a task had before them.

    `few_shot/completions.jsonl` has CompletionRecords of the tasks with `has_prompts`.
    """

    task: str = Field(description="Name of the task.")
    k: int = Field(description="Number of examples in the prompt; 0 if there were none.")
    wanted: int = Field(description="Number of examples that the config asks for.")
    instruction: str | None = Field(default=None, description="Text that was added to the system turn; null for none.")
    examples: list[str] = Field(default=[], description="File and line of each example, in their order.")
    num_tokens: int = Field(default=0, description="Number of tokens that the examples add to a prompt.")
    rows_with_fewer: int = Field(default=0, description="Number of test rows whose prompts hold fewer examples.")
    notes: list[str] = Field(
        default=[],
        description="Why there are fewer examples than the config asks for, and how their number was chosen.",
    )

    @property
    def has_prompts(self) -> bool:
        """Whether the base was given anything in its prompts."""
        return bool(self.k or self.instruction)


class SamplePromptRecord(RecordBase):
    """A line of `sample_prompts.jsonl`: a prompt without a reference, and its completion."""

    title: ModelText | None = Field(default=None, description="Title of the prompt in the report.")
    prompt: ModelText = Field(description="Prompt, before the chat template.")
    completion: ModelText = Field(description="Generated completion: the answer, without the reasoning before it.")
    reasoning: ModelText | None = Field(default=None, description=REASONING)
    reasoning_cut: bool = Field(default=False, description=REASONING_CUT)
    num_reasoning_tokens: int = Field(default=0, description=NUM_REASONING_TOKENS)
    num_generated_tokens: int | None = Field(default=None, description="Number of generated tokens.")
    finish_reason: Literal["stop", "length"] | None = Field(
        default=None, description="Reason for the end of the completion: a stop token, or the limit on its length."
    )


class RetentionRecord(RecordBase):
    """A line of `retention/base.jsonl` and `retention/tuned.jsonl`: the score of one item of a retention eval."""

    eval: str = Field(description="Name of the retention eval.")
    kind: str = Field(description="Kind of the retention eval.")
    metric: str = Field(default="", description="Metric of an eval of kind `task`; empty for other kinds.")
    item: int = Field(description="Index of the item in the eval, from 1.")
    score: Measurement | None = Field(description="Score of the item; null if it could not be scored.")
    chance_accuracy: float | None = Field(
        default=None, description="Expected accuracy of a random guess, in percent; multiple choice only."
    )
    score_after_own_task: float | None = Field(
        default=None, description="Score of the item right after the run that trained its task; earlier tasks only."
    )


class StepLoss(RecordBase):
    """The training loss of one step."""

    step: int = Field(description="Optimizer step, from 1.")
    loss: float = Field(description="Training loss of the step.")


class ValidationLoss(RecordBase):
    """The validation loss after a step."""

    step: int = Field(description="Number of optimizer steps before the evaluation; 0 for the base.")
    loss: float = Field(description="Validation loss.")
    tasks: dict[str, float] = Field(default={}, description="Validation loss per task.")


class RetentionMeans(RecordBase):
    """The mean scores of the retention evals after a step."""

    step: int = Field(description="Number of optimizer steps before the evaluation.")
    scores: dict[str, float] = Field(description="Mean score per retention eval.")


class RetentionStop(RecordBase):
    """The regression of retention evals that ended a training."""

    evals: list[str] = Field(description="Names of the retention evals that regressed by more than max_regression.")
    step: int = Field(description="Number of optimizer steps before the training ended.")


class ScaleLoss(RecordBase):
    """The loss on general text at one scale of the interpolation between base and tuned weights."""

    scale: float = Field(description="Factor on the difference between tuned and base weights.")
    loss: UncheckedFloat = Field(description="Mean loss on general text, in nats per token.")


class Interpolation(RecordBase):
    """The result of the strategy `interpolate`."""

    scale: float = Field(description="Chosen factor on the difference between tuned and base weights.")
    general_loss: list[ScaleLoss] = Field(description="Loss at every measured scale; empty for a fixed scale.")


class TrainingHistory(RecordBase):
    """`model/training.json`. Losses are in nats per supervised token of the tasks unless stated otherwise.

    The trainer records it as a dict with these keys, which is also part of every checkpoint.
    """

    steps: int = Field(description="Number of optimizer steps.")
    rows: int = Field(description="Number of training rows processed, over all epochs.")
    tokens: int | None = Field(default=None, description="Number of tokens processed, over all epochs.")
    supervised_tokens: int = Field(description="Number of supervised tokens processed, over all epochs.")
    seconds: float = Field(description="Wall-clock time of training, in seconds.")
    train_loss: list[StepLoss] = Field(description="Training loss per step.")
    validation_loss: list[ValidationLoss] = Field(description="Validation loss per evaluation.")
    best_step: int | None = Field(default=None, description="Step of the weights that were kept.")
    stopped_early: bool = Field(default=False, description="Whether the training ended before its last planned step.")
    stopped_by_retention: RetentionStop | None = Field(
        default=None, description="Regression that ended the training; null if none did."
    )
    trainable_parameters: int | None = Field(default=None, description="Number of trainable parameters.")
    parameters: int | None = Field(default=None, description="Number of parameters of the model.")
    peak_memory_bytes: int | None = Field(
        default=None, description="Peak memory in bytes: of the GPU if there is one, else of the process."
    )
    retention: list[RetentionMeans] = Field(default=[], description="Scores of the retention evals during training.")
    forgetting: list[dict[str, float | None]] = Field(
        default=[],
        description="Losses of the strategies against forgetting per step, in nats, and "
        "penalty_to_task_grad_norm_ratio: the norm of the gradients that the strategies add to those of the losses on "
        "the tasks' rows, divided by the norm of the latter, before clipping; null if the divisor is 0.",
    )
    skipped_steps: list[int] = Field(
        default=[], description="Steps with a non-finite loss or gradient, which did not change the weights."
    )
    overflowed_steps: list[int] = Field(
        default=[],
        description="Steps whose gradients overflowed in fp16, which halved the loss scale and did not change the "
        "weights.",
    )
    attention: str | None = Field(
        default=None, description="How attention was computed: varlen, dense, loop, masked or unpacked."
    )
    micro_batch: dict[Literal["rows", "tokens"], int] | None = Field(
        default=None,
        description="Size of the micro-batches in rows or in tokens, if it was measured, or reduced because memory "
        "ran out.",
    )
    strategy_micro_batch: int | None = Field(
        default=None,
        description="Rows of general text and of earlier jobs in one pass, if reduced because memory ran out.",
    )
    notes: list[str] = Field(default=[], description="Notes on the training, such as a resume after a corrupt file.")
    probe_losses: list[UncheckedFloat] | None = Field(
        default=None,
        description="Losses of the saved model on the tokens of a fixed batch, which identify it when it is loaded; "
        "null if the weights were sharded.",
    )
    interpolate: Interpolation | None = Field(
        default=None, description="Result of the strategy `interpolate`; null without it."
    )

    @property
    def validated_once(self) -> bool:
        """Whether validation measured only one set of trained weights."""
        return len({point.step for point in self.validation_loss if point.step}) < 2


class StageRecord(RecordBase):
    """A completed stage of a run."""

    seconds: float = Field(description="Wall-clock time of the stage, in seconds.")
    finished: str = Field(default="", description="Time of completion in UTC, in ISO 8601.")
    inputs: str = Field(default="", description="Digest of what the stage depends on.")


class DrawnRows(RecordBase):
    """The rows of a split that are evaluated, if they are not all."""

    rows: int = Field(description="Number of rows that were drawn at random.")
    of: int = Field(description="Number of rows of the split.")


class TaskData(RecordBase):
    """The data of a task."""

    train: int = Field(description="Number of training rows.")
    validation: int = Field(description="Number of validation rows.")
    test: int = Field(description="Number of test rows.")
    file: str = Field(default="", description="Path of the data file.")
    sha256: str = Field(default="", description="SHA-256 of the data file.")
    train_with_reasoning: int | None = Field(
        default=None,
        description="Number of training rows with reasoning before the completion; null if the task trains none. "
        "Otherwise its prompts ask for reasoning.",
    )
    dropped: dict[str, int] = Field(
        default={}, description="Number of rows per split that are longer than the limit and were left out."
    )
    truncated: dict[str, int] = Field(
        default={}, description="Number of rows per split whose prompt was shortened to the limit."
    )
    drawn: dict[str, DrawnRows] = Field(
        default={}, description="Splits of which not all rows are evaluated; the others were not trained on either."
    )
    notes: list[str] = Field(
        default=[],
        description="Notes of the data checks: on the labels of the task, and on rows longer than the limit.",
    )


class Hardware(RecordBase):
    """The machine of a run."""

    cpu: str = Field(description="Model name of the CPU.")
    cores: int = Field(description="Number of CPU cores.")
    memory_gb: float = Field(description="Main memory in GiB.")
    device: str = Field(default="cpu", description="Device of the models: cuda, mps, xpu or cpu.")
    dtype: str = Field(default="fp32", description="Precision of matrix products and frozen weights.")
    reason: str = Field(default="", description="Why this precision was chosen.")
    warning: str | None = Field(default=None, description="Why a GPU of the machine was not used.")
    inference_engine: str = Field(default="auto", description="Requested engine of completions: auto, torch or vllm.")
    gpu: str | None = Field(default=None, description="Model name of the GPU.")
    gpu_count: int | None = Field(default=None, description="Number of GPUs that the process sees.")
    gpu_memory_gb: float | None = Field(default=None, description="Memory of the GPU in GiB.")
    compute_capability: str | None = Field(default=None, description="CUDA compute capability of the GPU.")
    cuda: str | None = Field(default=None, description="CUDA version that torch was built with.")
    driver: str | None = Field(default=None, description="Version of the NVIDIA driver.")


class PlanRecord(RecordBase):
    """What `alfine plan` expected when the run started, to compare with what happened."""

    steps: int = Field(description="Number of optimizer steps.")
    peak_memory_bytes: int = Field(description="Peak memory in bytes, as `training.peak_memory_bytes` measures it.")
    training_seconds: float = Field(description="Wall-clock time of the stage `train`, in seconds.")
    seconds: float = Field(description="Wall-clock time of all stages, in seconds.")


class Manifest(RecordBase):
    """`manifest.json` of a finished run or of a comparison of two models."""

    format_version: int = Field(description="Version of the format of the run folder.")
    name: str = Field(description="Name of the run.")
    command: str = Field(description="Command that started the run.")
    config: str = Field(default="", description="Path of the config as the user wrote it.")
    config_from_run: str = Field(default="", description="Path of the config, relative to the run folder.")
    base_model: str = Field(description="Base model as the config names it.")
    base_revision: str = Field(default="", description="Commit of the base model on the Hub, or digest of its files.")
    continue_from: str | None = Field(default=None, description="Run that this run continues from.")
    seed: int = Field(description="Random seed of the run.")
    versions: dict[str, str] = Field(description="Versions of Python and of the main packages.")
    hardware: Hardware = Field(description="Machine of the run.")
    generation: dict[str, Any] = Field(description="Generation settings of all completions.")
    engines: dict[str, str] = Field(
        default={}, description="Program that generated the completions of base and tuned, where it was not alfine."
    )
    stages: dict[str, StageRecord] = Field(description="Completed stages by name.")
    data: dict[str, TaskData] = Field(description="Data by task.")
    warnings: list[str] = Field(default=[], description="Warnings of the data checks.")
    hub_data: dict[str, str] = Field(
        default={}, description="Data sets on the Hub, as the config names them, with the commit that is used."
    )
    prompt_date: str | None = Field(
        default=None, description="Date that chat templates see as today's: that on which the rows were prepared."
    )
    plan: PlanRecord | None = Field(default=None, description="Plan of the run; null if it could not be made.")
    models: tuple[str, str] | None = Field(
        default=None, description="Names of the two models of a comparison; null for a run, which has base and tuned."
    )


def prompts_for_reasoning(manifest: Mapping[str, Any], task: str | None = None) -> bool:
    """Whether prompts of a task ask for reasoning, as those of its training rows do. Without a task: whether those of
    any task of the run do."""
    data = manifest.get("data", {})
    tasks = data.values() if task is None else [data.get(task, {})]
    return any(entry.get("train_with_reasoning") is not None for entry in tasks)


def write_records(path: Path, records: Iterable[RecordBase]) -> None:
    """Writes JSON Lines with all keys of each record."""
    # Not model_dump(), which would convert the values of a row's columns.
    write_jsonl(path, [dict(record) for record in records])


def read_records[R: RecordBase](path: Path, record_type: type[R]) -> list[R]:
    """The records of a file that `write_records` wrote."""
    return [record_type.model_validate(record) for record in read_jsonl(path)]
