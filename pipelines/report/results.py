"""The results of a comparison of two models, which every form of the report shows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config.forgetting import BASELINE_LABELS, parse_strategies
from pipelines.report.formatting import BASE_AND_TUNED, count
from pipelines.report.retention import BackwardTransfer, RetentionResult
from pipelines.scoring.metric import Metric, Unit
from pipelines.scoring.statistics import Comparison, is_significant
from pipelines.storage.records import Manifest, StageRecord, TrainingHistory

TaskVerdict = Literal["better", "worse", "inconclusive"]
Change = Literal["better", "worse", "same", "unscored"]


def describe_given(k: int, instruction: str | None) -> str:
    """What the base was given in its prompt: "4 examples", "an instruction" or "4 examples and an instruction"."""
    return " and ".join([*([count(k, "example")] if k else []), *(["an instruction"] if instruction else [])])


@dataclass(frozen=True)
class Pair[T]:
    """One value per model."""

    base: T
    tuned: T


@dataclass(frozen=True)
class NllChange:
    """The mean negative log-likelihood of the references in nats per token. `ci95` is the interval of `delta`."""

    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class ReasoningCounts:
    """The completions of one model that have reasoning, of all that a task has."""

    completions: int
    """Completions with reasoning."""
    cut: int
    """Completions that were cut inside their reasoning."""
    unanswered: int
    """Completions that end after or inside their reasoning by themselves, without an answer."""
    mean_tokens: float
    """Mean number of reasoning tokens per completion, of all completions."""


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """The tuned model compared with another one on the same rows."""

    metric: Metric
    comparison: Comparison
    p_holm: float
    """The p-value after Holm's correction for the number of tasks."""
    num_better: int
    """Rows with a better score of the tuned model; for a binary metric wrong → right."""
    num_worse: int
    """Rows with a worse score of the tuned model."""
    num_same: int
    """Rows with the same score."""

    @property
    def unit(self) -> Unit:
        """The unit of the scores."""
        return self.metric.unit

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        return self.metric.higher_is_better

    @property
    def significant(self) -> bool:
        """Whether the difference is significant after the correction for the number of tasks."""
        return is_significant(self.p_holm, self.comparison.ci95)

    @property
    def gain(self) -> float:
        """The change of the mean score, positive if the tuned model is better."""
        return self.comparison.delta if self.higher_is_better else -self.comparison.delta

    @property
    def gain_ci95(self) -> tuple[float, float]:
        """The 95 % interval of `gain`."""
        low, high = self.comparison.ci95
        return (low, high) if self.higher_is_better else (-high, -low)

    @property
    def verdict(self) -> TaskVerdict:
        """The result in one word."""
        if not self.significant:
            return "inconclusive"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class FewShotResult(PairedResult):
    """The tuned model compared with the base that has examples in its prompt, on the rows that both could be scored on.

    `comparison.base` is the mean score of the base with examples.
    """

    k: int
    """Number of examples in the prompt."""
    instruction: str | None
    """Text that was added to the system turn; None for none."""
    num_tokens: int
    """Number of tokens that examples and instruction add to it."""

    @property
    def given(self) -> str:
        """What the base was given in its prompt."""
        return describe_given(self.k, self.instruction)

    unscored: int
    """Completions of the base with examples that could not be scored."""


@dataclass(frozen=True, kw_only=True)
class TaskResult(PairedResult):
    """A task, scored on the rows that both models' completions could be scored on."""

    name: str
    unscored: Pair[int]
    """Completions that could not be scored."""
    reference_nll: NllChange | None
    """None if the two models tokenize the references differently."""
    label_anywhere_accuracy: Pair[float] | None
    """For label tasks, the percentage of completions with the right label and no other label anywhere in the text."""
    caveats: list[str] = field(default_factory=list)
    """Sentences about what limits the meaning of the result."""
    reasoning: Pair[ReasoningCounts] | None = None
    """None if no completion of the task has reasoning."""
    few_shot: FewShotResult | None = None
    """None if the base had no examples in its prompt."""

    @property
    def title(self) -> str:
        """The name of the metric in the report."""
        return self.metric.title

    @property
    def percent_scale(self) -> bool:
        """Whether scores are known to run from 0 to 100. The scale of a custom metric is not known."""
        return self.unit is not Unit.NATS_PER_TOKEN and ":" not in self.metric.name


@dataclass(frozen=True)
class FewShotAnswer:
    """The completion of the base with examples in its prompt. `score` is None if it could not be scored."""

    text: str
    score: float | None
    detail: str
    reasoning: str | None = None
    reasoning_cut: bool = False


@dataclass(frozen=True)
class ExampleComparison:
    """A test row with the completions of both models. A score is None if the completion could not be scored."""

    task: str
    row: int
    prompt: str
    reference: str
    base: str
    tuned: str
    base_score: float | None
    tuned_score: float | None
    base_detail: str
    tuned_detail: str
    change: Change
    gain: float
    """The change of the score, positive if the tuned model is better; 0 if unscored."""
    both_wrong: bool
    base_reasoning: str | None = None
    """The reasoning before the answer `base`; None if there is none."""
    tuned_reasoning: str | None = None
    base_reasoning_cut: bool = False
    """Whether the completion was cut inside its reasoning, so that it has no answer."""
    tuned_reasoning_cut: bool = False
    reference_reasoning: str | None = None
    """The reasoning of the row; None if it has none."""
    few_shot: FewShotAnswer | None = None
    """The completion of the base with examples in its prompt; None if its task has none."""
    answer: int | None = None
    """The number of the answer among those of its row, from 1; None if the row has one answer."""

    @property
    def row_title(self) -> str:
        """The row in words, unique within the task."""
        return f"row {self.row}" + (f", answer {self.answer}" if self.answer is not None else "")


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt without a reference, with the completions of both models."""

    title: str | None
    prompt: str
    base: str
    tuned: str
    base_reasoning: str | None = None
    tuned_reasoning: str | None = None
    base_reasoning_cut: bool = False
    tuned_reasoning_cut: bool = False


@dataclass(frozen=True)
class GateResult:
    """The result of a quality gate, with a sentence about what was required and measured."""

    name: str
    passed: bool
    summary: str


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows. `examples` have the order of the completions."""

    manifest: Manifest
    config: dict[str, Any]
    tasks: dict[str, TaskResult]
    examples: list[ExampleComparison]
    sample_prompts: list[SamplePrompt]
    training: TrainingHistory | None
    """None for a comparison of two models."""
    models: tuple[str, str] = BASE_AND_TUNED
    """The names of the two models."""
    gates: list[GateResult] = field(default_factory=list)
    retention: dict[str, RetentionResult] = field(default_factory=dict)
    """The results of the retention evals by name."""
    retention_changes: dict[str, list[float]] = field(default_factory=dict)
    """By retention eval, `tuned - base` of each item that was scored on both models."""
    backward_transfer: BackwardTransfer | None = None
    """None unless the run continues from an earlier run."""

    @property
    def training_method(self) -> str:
        """What is trained, and on how many tasks: `peft` or `full`, and `multitask`."""
        pipeline = self.config["pipeline"]
        labels = [
            "peft" if self.config.get("adapter") else "full",
            *(["multitask"] if len(pipeline["tasks"]) > 1 else []),
            *(word for word in self._forgetting_words if word in BASELINE_LABELS),
        ]
        return ", ".join(dict.fromkeys(labels))

    @property
    def strategies(self) -> list[str]:
        """The strategies against forgetting."""
        return [word for word in self._forgetting_words if word not in BASELINE_LABELS]

    @property
    def _forgetting_words(self) -> list[str]:
        return parse_strategies(self.config["pipeline"].get("forgetting", {}).get("strategy", "none"))

    @property
    def metric_notes(self) -> dict[str, str]:
        """By title of a metric, how it compares completions with references. Metrics without a note are left out."""
        return {task.title: task.metric.note for task in self.tasks.values() if task.metric.note}

    @property
    def digest(self) -> str:
        """The SHA-256 of all completions of both models. Ratings are valid for exactly these completions."""
        rows = [[example.task, example.row, example.base, example.tuned] for example in self.examples]
        prompts = [[sample.prompt, sample.base, sample.tuned] for sample in self.sample_prompts]
        return hashlib.sha256(json.dumps([rows, prompts]).encode()).hexdigest()

    @property
    def gates_failed_first(self) -> list[GateResult]:
        """The gates, failed ones first."""
        return sorted(self.gates, key=lambda gate: gate.passed)

    @property
    def stages(self) -> dict[str, StageRecord]:
        """The stages without the report, whose time would make a second report differ from the first."""
        return {name: stage for name, stage in self.manifest.stages.items() if name != "report"}

    @property
    def examples_by_regression(self) -> list[ExampleComparison]:
        """The examples sorted by gain: the largest regression first, the unscored last.

        Among unchanged examples those that both models got wrong come first.
        """
        return sorted(
            self.examples,
            key=lambda example: (example.change == "unscored", example.gain, not example.both_wrong),
        )
