"""`report.json`: the results of the tasks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines.report.few_shot import few_shot_sentence
from pipelines.report.results import FewShotResult, TaskResult, TaskVerdict
from pipelines.report.retention import RetentionResult
from pipelines.report.summaries import task_summary

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


class FewShotReport(JsonModel):
    """The tuned model compared with the base that has examples from the training rows in its prompt."""

    k: int = Field(description="Number of examples in the prompt.")
    instruction: str | None = Field(description="Text that was added to the system turn; null for none.")
    num_tokens: int = Field(description="Number of tokens that examples and instruction add to a prompt.")
    n: int = Field(description="Number of rows that were scored on both.")
    few_shot: float = Field(description="Mean score of the base with examples, on these rows.")
    tuned: float = Field(description="Mean score of the tuned model, or of the second model, on these rows.")
    delta: float = Field(description="Difference tuned - few_shot.")
    ci95: Interval = Field(description="Paired 95 % confidence interval of delta.")
    p_value: float = Field(description="Two-sided p-value of no difference.")
    p_holm: float = Field(description="p_value after Holm's correction for the number of tasks with examples.")
    significant: bool = Field(description="Whether p_holm is below 0.05 and ci95 excludes 0.")
    verdict: TaskVerdict = Field(description="Tuned against few_shot in one word; inconclusive if not significant.")
    wins: int = Field(description="Number of rows with a better score of the tuned model.")
    losses: int = Field(description="Number of rows with a worse score of the tuned model.")
    ties: int = Field(description="Number of rows with the same score.")
    unscored: int = Field(description="Number of completions after examples that could not be scored.")
    summary: str = Field(description="Result in a sentence.")


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
    few_shot: FewShotReport | None = Field(
        description="Comparison with examples in the base's prompt; null if there were none."
    )
    scoring: str = Field(description="Note on how the metric compares completions with references; may be empty.")
    summary: str = Field(description="Result in a sentence.")
    caveats: list[str] = Field(description="Sentences about what limits the meaning of the result.")


def task_report(task: TaskResult) -> TaskReport:
    anywhere, nll = task.label_anywhere_accuracy, task.reference_nll
    return TaskReport(
        **comparison_fields(task),
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
        few_shot=None if task.few_shot is None else _few_shot(task, task.few_shot),
        scoring=task.metric.note,
        summary=task_summary(task),
        caveats=task.caveats,
    )


def _few_shot(task: TaskResult, result: FewShotResult) -> FewShotReport:
    comparison = result.comparison
    return FewShotReport(
        k=result.k,
        instruction=result.instruction,
        num_tokens=result.num_tokens,
        n=comparison.n,
        few_shot=comparison.base,
        tuned=comparison.tuned,
        delta=comparison.delta,
        ci95=comparison.ci95,
        p_value=comparison.p_value,
        p_holm=result.p_holm,
        significant=result.significant,
        verdict=result.verdict,
        wins=result.num_better,
        losses=result.num_worse,
        ties=result.num_same,
        unscored=result.unscored,
        summary=few_shot_sentence(task),
    )


def comparison_fields(result: TaskResult | RetentionResult) -> dict[str, Any]:
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
