"""`report.json`: the whole analysis for programs.

The model `Report` defines the format; docs/report.schema.json is the same as JSON Schema. With a change of the
format, raise FORMAT_VERSION and write that file: `python -m pipelines.report.json_report`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.report.few_shot import worth_of_tuning
from pipelines.report.json_tasks import (
    ComparisonReport,
    Interval,
    JsonModel,
    TaskReport,
    comparison_fields,
    task_report,
)
from pipelines.report.results import Analysis, Change
from pipelines.report.retention import RetentionResult, RetentionVerdict
from pipelines.report.summaries import headline, retention_summary
from pipelines.storage.files import write_text
from pipelines.storage.records import Hardware, PlanRecord, StageRecord, TaskData, TrainingHistory

FORMAT_VERSION = 8
"""The value of `Report.format_version`."""


class FewShotAnswerReport(JsonModel):
    """The completion of the base with examples in its prompt."""

    text: str = Field(description="Completion.")
    score: float | None = Field(description="Score; null if it could not be scored.")
    detail: str = Field(description="Details of the score, such as failed tests.")
    reasoning: str | None = Field(description="Reasoning before the answer; null if there is none.")
    reasoning_cut: bool = Field(description="Whether it is empty because it was cut inside its reasoning.")


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
    few_shot: FewShotAnswerReport | None = Field(
        description="Completion of the base with examples in its prompt; null if its task has none."
    )


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
    worth_of_tuning: list[str] = Field(
        description="Whether tuning was worth it, given the base with examples in its prompt; empty without examples."
    )
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
    engines: dict[str, str] = Field(
        description="Program that generated the completions of base and tuned, where it was not alfine."
    )


def render(analysis: Analysis) -> str:
    """The analysis as indented JSON."""
    manifest = analysis.manifest
    report = Report(
        run=manifest.name,
        base_model=manifest.base_model,
        models=analysis.models,
        digest=analysis.digest,
        headline=headline(analysis),
        worth_of_tuning=worth_of_tuning(analysis),
        gates=[GateReport(**asdict(gate)) for gate in analysis.gates_failed_first],
        tasks={name: task_report(task) for name, task in analysis.tasks.items()},
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
        engines=manifest.engines,
    )
    return report.model_dump_json(indent=2) + "\n"


def schema() -> str:
    """The JSON Schema of the format, as in docs/report.schema.json."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"


def write_schema() -> None:
    """Writes docs/report.schema.json of this repository."""
    write_text(Path(__file__).parents[2] / "docs" / "report.schema.json", schema())


def _retention(result: RetentionResult) -> RetentionReport:
    return RetentionReport(
        **comparison_fields(result),
        kind=result.kind,
        p_holm=result.p_holm,
        verdict=result.verdict,
        losses=result.num_worse,
        wins=result.num_better,
        summary=result.summary,
        caveats=result.caveats,
    )


if __name__ == "__main__":
    write_schema()
