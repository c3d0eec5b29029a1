"""`report.json`: the whole analysis for programs.

The model `Report` defines the format; docs/report.schema.json is the same as JSON Schema. With a change of the
format, raise FORMAT_VERSION and write that file: `python -m pipelines.report.json_report`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines.report.results import Analysis, Change, TaskResult, TaskVerdict
from pipelines.report.retention import RetentionResult, RetentionVerdict
from pipelines.report.summaries import headline, retention_summary, task_summary
from pipelines.storage.files import write_text
from pipelines.storage.records import Hardware, PlanRecord, StageRecord, TaskData, TrainingHistory

FORMAT_VERSION = 7
"""The value of `Report.format_version`."""

Interval = tuple[float, float]


class JsonModel(BaseModel):
    """Base of the objects of report.json: no unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PairReport[T](JsonModel):
    """One value per model."""

    base: T = Field(description="Value of the base, or of the first model.")
    tuned: T = Field(description="Value of the tuned model, or of the second model.")


class NllReport(JsonModel):
    """The mean negative log-likelihood of the references, in nats per token."""

    base: float = Field(description="Mean of the base, or of the first model.")
    tuned: float = Field(description="Mean of the tuned model, or of the second model.")
    delta: float = Field(description="Difference tuned - base.")
    ci95: Interval = Field(description="Paired 95 % confidence interval of delta.")


class ComparisonReport(JsonModel):
    """The scores of two models on the same rows. Percentages and points are on a scale from 0 to 100."""

    title: str = Field(description="Name of the measure for readers.")
    unit: str = Field(description="Unit of the scores: %, points or nats/token.")
    higher_is_better: bool = Field(description="Whether a higher score is better.")
    n: int = Field(description="Number of rows or items that were scored on both models.")
    base: float = Field(description="Mean score of the base, or of the first model.")
    tuned: float = Field(description="Mean score of the tuned model, or of the second model.")
    delta: float = Field(description="Difference tuned - base.")
    ci95: Interval = Field(description="Paired 95 % confidence interval of delta.")


class ReasoningReport(JsonModel):
    """The completions of one model on a task that have reasoning."""

    completions: int = Field(description="Number of completions with reasoning.")
    cut: int = Field(description="Number of completions that were cut inside their reasoning and have no answer.")
    unanswered: int = Field(
        description="Number of completions with reasoning that end by themselves without an answer."
    )
    mean_tokens: float = Field(description="Mean number of reasoning tokens per completion, of all completions.")


class TaskReport(ComparisonReport):
    """A task."""

    metric: str = Field(description="Metric as the config names it.")
    binary: bool = Field(description="Whether every row scores 0 or 100.")
    p_value: float = Field(description="Two-sided p-value of no difference.")
    p_holm: float = Field(description="p_value after Holm's correction for the number of tasks.")
    significant: bool = Field(description="Whether p_holm is below 0.05 and ci95 excludes 0.")
    verdict: TaskVerdict = Field(description="Result in one word; inconclusive if not significant.")
    wins: int = Field(description="Number of rows with a better score of the tuned model.")
    losses: int = Field(description="Number of rows with a worse score of the tuned model.")
    ties: int = Field(description="Number of rows with the same score.")
    unscored: PairReport[int] = Field(description="Number of completions that could not be scored.")
    required_sample_size: int | None = Field(
        description="Approximate number of rows for 80 % power at the observed effect size; null if significant."
    )
    reference_nll: NllReport | None = Field(
        description="Negative log-likelihood of the references; null if the models tokenize them differently."
    )
    label_anywhere_accuracy: PairReport[float] | None = Field(
        description="Percentage of completions with the right label and no other in the text; null for other metrics."
    )
    reasoning: PairReport[ReasoningReport] | None = Field(
        description="Reasoning of the completions; null if none has any."
    )
    scoring: str = Field(description="Note on how the metric compares completions with references; may be empty.")
    summary: str = Field(description="Result in a sentence.")
    caveats: list[str] = Field(description="Sentences about what limits the meaning of the result.")


class ExampleReport(JsonModel):
    """A test row with the completions of both models."""

    task: str = Field(description="Name of the task.")
    row: int = Field(description="Line of the row in its data file, from 1.")
    answer: int | None = Field(
        description="Number of the answer among those of its row, from 1; null if the row has one answer."
    )
    prompt: str = Field(description="Prompt, before the chat template.")
    reference: str = Field(description="Expected completion.")
    base: str = Field(description="Completion of the base, or of the first model.")
    tuned: str = Field(description="Completion of the tuned model, or of the second model.")
    base_score: float | None = Field(description="Score of `base`; null if it could not be scored.")
    tuned_score: float | None = Field(description="Score of `tuned`; null if it could not be scored.")
    base_detail: str = Field(description="Details of the score of `base`, such as failed tests.")
    tuned_detail: str = Field(description="Details of the score of `tuned`, such as failed tests.")
    change: Change = Field(description="Direction of the change of the score.")
    gain: float = Field(description="Change of the score, positive if the tuned model is better.")
    both_wrong: bool = Field(description="Whether both completions are wrong; binary metrics only.")
    base_reasoning: str | None = Field(description="Reasoning before the answer `base`; null if there is none.")
    tuned_reasoning: str | None = Field(description="Reasoning before the answer `tuned`; null if there is none.")
    base_reasoning_cut: bool = Field(description="Whether `base` is empty because it was cut inside its reasoning.")
    tuned_reasoning_cut: bool = Field(description="Whether `tuned` is empty because it was cut inside its reasoning.")
    reference_reasoning: str | None = Field(description="Reasoning of the row before its completion; null if none.")


class SamplePromptReport(JsonModel):
    """A prompt without a reference, with the completions of both models."""

    title: str | None = Field(description="Title of the prompt.")
    prompt: str = Field(description="Prompt, before the chat template.")
    base: str = Field(description="Completion of the base, or of the first model.")
    tuned: str = Field(description="Completion of the tuned model, or of the second model.")
    base_reasoning: str | None = Field(description="Reasoning before the answer `base`; null if there is none.")
    tuned_reasoning: str | None = Field(description="Reasoning before the answer `tuned`; null if there is none.")
    base_reasoning_cut: bool = Field(description="Whether `base` is empty because it was cut inside its reasoning.")
    tuned_reasoning_cut: bool = Field(description="Whether `tuned` is empty because it was cut inside its reasoning.")


class RetentionReport(ComparisonReport):
    """A retention eval."""

    kind: str = Field(description="Kind of the eval.")
    p_holm: float | None = Field(
        description="p-value after Holm's correction for the number of evals; null for a divergence."
    )
    verdict: RetentionVerdict | None = Field(description="Result in a few words; null for a divergence.")
    losses: int = Field(description="Number of items with a worse score of the tuned model.")
    wins: int = Field(description="Number of items with a better score of the tuned model.")
    summary: str = Field(description="Result in a sentence.")
    caveats: list[str] = Field(description="Sentences about what limits the meaning of the result.")


class BackwardTransferReport(JsonModel):
    """The mean over earlier tasks of the score now minus the score right after the run that trained the task."""

    value: float = Field(description="Backward transfer in points.")
    ci95: Interval = Field(description="95 % confidence interval of value.")
    tasks: int = Field(description="Number of earlier tasks.")


class GateReport(JsonModel):
    """A quality gate."""

    name: str = Field(description="Name of the task or retention eval.")
    passed: bool = Field(description="Whether the gate passed.")
    summary: str = Field(description="Required and measured value in a sentence.")


class Report(JsonModel):
    """The report of a run, or of a comparison of two models. `models` names what `base` and `tuned` stand for."""

    format_version: int = Field(
        default=FORMAT_VERSION, description="Version of this format.", json_schema_extra={"const": FORMAT_VERSION}
    )
    run: str = Field(description="Name of the run.")
    base_model: str = Field(description="Base model as the config names it.")
    models: tuple[str, str] = Field(description="Names of the two models.")
    digest: str = Field(description="SHA-256 of all completions; ratings are valid for exactly these.")
    headline: str = Field(description="Result of the run in one line.")
    gates: list[GateReport] = Field(description="Quality gates, failed ones first.")
    tasks: dict[str, TaskReport] = Field(description="Results by task.")
    examples: list[ExampleReport] = Field(description="Test rows in the order of the completions.")
    sample_prompts: list[SamplePromptReport] = Field(description="Prompts without a reference.")
    retention: dict[str, RetentionReport] = Field(description="Results by retention eval.")
    retention_summary: str = Field(description="Improved tasks and regressed retention evals in one line.")
    backward_transfer: BackwardTransferReport | None = Field(
        description="Backward transfer; null unless the run continues from an earlier run."
    )
    training_method: str = Field(description="Training method: peft or full, and multitask for several tasks.")
    strategies: list[str] = Field(description="Strategies against forgetting.")
    training: TrainingHistory | None = Field(description="History of the training; null for a comparison.")
    plan: PlanRecord | None = Field(description="Plan of the run when it started; null if there is none.")
    config: dict[str, Any] = Field(description="Resolved config.")
    data: dict[str, TaskData] = Field(description="Data by task.")
    versions: dict[str, str] = Field(description="Versions of Python and of the main packages.")
    hardware: Hardware = Field(description="Machine of the run.")
    stages: dict[str, StageRecord] = Field(description="Completed stages by name.")
    command: str = Field(description="Command that started the run.")
    seed: int = Field(description="Random seed.")
    generation: dict[str, Any] = Field(description="Generation settings.")


def render(analysis: Analysis) -> str:
    """The analysis as indented JSON."""
    manifest = analysis.manifest
    report = Report(
        run=manifest.name,
        base_model=manifest.base_model,
        models=analysis.models,
        digest=analysis.digest,
        headline=headline(analysis),
        gates=[GateReport(**asdict(gate)) for gate in analysis.gates_failed_first],
        tasks={name: _task(task) for name, task in analysis.tasks.items()},
        examples=[ExampleReport(**asdict(example)) for example in analysis.examples],
        sample_prompts=[SamplePromptReport(**asdict(sample)) for sample in analysis.sample_prompts],
        retention={name: _retention(result) for name, result in analysis.retention.items()},
        retention_summary=retention_summary(analysis),
        backward_transfer=BackwardTransferReport(**asdict(analysis.backward_transfer))
        if analysis.backward_transfer
        else None,
        training_method=analysis.training_method,
        strategies=analysis.strategies,
        training=analysis.training,
        plan=analysis.manifest.plan,
        # YAML has dates, JSON does not: `default=str` writes them as text.
        config=json.loads(json.dumps(analysis.config, default=str)),
        data=manifest.data,
        versions=manifest.versions,
        hardware=manifest.hardware,
        stages=analysis.stages,
        command=manifest.command,
        seed=manifest.seed,
        generation=manifest.generation,
    )
    return report.model_dump_json(indent=2) + "\n"


def schema() -> str:
    """The JSON Schema of the format, as in docs/report.schema.json."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"


def write_schema() -> None:
    """Writes docs/report.schema.json of this repository."""
    write_text(Path(__file__).parents[2] / "docs" / "report.schema.json", schema())


def _task(task: TaskResult) -> TaskReport:
    anywhere, nll = task.label_anywhere_accuracy, task.reference_nll
    return TaskReport(
        **_comparison(task),
        metric=task.metric.name,
        binary=task.metric.binary,
        p_value=task.comparison.p_value,
        p_holm=task.p_holm,
        significant=task.significant,
        verdict=task.verdict,
        wins=task.num_better,
        losses=task.num_worse,
        ties=task.num_same,
        unscored=PairReport[int](**asdict(task.unscored)),
        required_sample_size=task.comparison.required_sample_size,
        reference_nll=NllReport(**asdict(nll)) if nll else None,
        label_anywhere_accuracy=PairReport[float](**asdict(anywhere)) if anywhere else None,
        reasoning=PairReport[ReasoningReport](**asdict(task.reasoning)) if task.reasoning else None,
        scoring=task.metric.note,
        summary=task_summary(task),
        caveats=task.caveats,
    )


def _retention(result: RetentionResult) -> RetentionReport:
    return RetentionReport(
        **_comparison(result),
        kind=result.kind,
        p_holm=result.p_holm,
        verdict=result.verdict,
        losses=result.num_worse,
        wins=result.num_better,
        summary=result.summary,
        caveats=result.caveats,
    )


def _comparison(result: TaskResult | RetentionResult) -> dict[str, Any]:
    """The keys of ComparisonReport."""
    comparison = result.comparison
    return {
        "title": result.title,
        "unit": result.unit,
        "higher_is_better": result.higher_is_better,
        "n": comparison.n,
        "base": comparison.base,
        "tuned": comparison.tuned,
        "delta": comparison.delta,
        "ci95": comparison.ci95,
    }


if __name__ == "__main__":
    write_schema()
