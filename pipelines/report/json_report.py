"""`report.json`: the whole analysis for programs.

Its form is `Report`; docs/report.schema.json is the same as JSON Schema. A change of the form raises FORMAT_VERSION.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.report.run_files import Hardware, Stage, TaskData, Training
from pipelines.report.summaries import headline, sentence

if TYPE_CHECKING:
    from pipelines.report.results import Analysis, TaskResult
    from pipelines.report.retention import GuardResult

FORMAT_VERSION = 3
"""Stands in `Report.format_version` as well, where a reader of the schema looks for it."""

Verdict = Literal["better", "worse", "cannot tell"]
Change = Literal["better", "worse", "same", "unscored"]
Interval = tuple[float, float]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class LossReport(Part):
    """Mean loss of the references in nats per token, `ci95` that of the difference."""

    base: float
    tuned: float
    delta: float
    ci95: Interval


class SidesOf[T](Part):
    base: T
    tuned: T


class TaskReport(Part):
    """A task over the `n` rows that could be scored on both sides; percentages and points on a 0…100 scale."""

    metric: str
    title: str
    unit: str
    binary: bool
    higher_is_better: bool
    n: int
    base: float
    tuned: float
    delta: float = Field(description="tuned - base")
    ci95: Interval = Field(description="paired 95 % interval of delta")
    p_value: float
    p_holm: float = Field(description="p_value after Holm's correction for the number of tasks")
    gained: int = Field(description="rows that tuned answers better; right-or-wrong metrics: wrong → right")
    lost: int
    same: int
    unscored: SidesOf[int]
    rows_needed: int | None = Field(description="about how many rows would tell the difference; null where it is told")
    loss: LossReport | None
    loose: SidesOf[float] | None = Field(description="label tasks: answers that name the right label, in whatever form")
    scoring: str = Field(description="how the metric compares answers with references; empty where its title says it")
    flags: list[str] = Field(description="what makes these numbers worth less than they look")
    told_apart: bool
    verdict: Verdict
    sentence: str


class ExampleReport(Part):
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
    both_wrong: bool


class ProbeReport(Part):
    """A free prompt, which has no reference."""

    title: str | None
    prompt: str
    base: str
    tuned: str


class GuardReport(Part):
    """A guard over the `n` items that could be scored on both sides."""

    kind: str
    title: str
    unit: str
    higher_is_better: bool
    n: int
    base: float
    tuned: float
    delta: float = Field(description="tuned - base")
    ci95: Interval = Field(description="paired 95 % interval of delta")
    p_holm: float | None = Field(description="corrected for the number of guards; null for a divergence")
    lost: int = Field(description="items that tuned does worse; multiple choice: right → wrong")
    gained: int
    flags: list[str]
    verdict: Literal["lost", "gained", "no loss seen", "drift"]
    sentence: str


class BackwardTransferReport(Part):
    """The mean over earlier tasks of their score now minus that right behind their own job, in points."""

    value: float
    ci95: Interval
    tasks: int


class GateReport(Part):
    name: str
    passed: bool
    sentence: str


class Report(Part):
    """What `base` and `tuned` stand for is in `sides`: where two models are compared, their names."""

    format_version: Literal[3] = 3
    run: str
    base_model: str
    sides: tuple[str, str]
    digest: str = Field(description="SHA-256 of all answers; ratings belong to these")
    headline: str
    gates: list[GateReport]
    tasks: dict[str, TaskReport]
    examples: list[ExampleReport]
    probes: list[ProbeReport]
    guards: dict[str, GuardReport]
    bwt: BackwardTransferReport | None
    strategies: str = Field(description="peft or full, multitask; and what was done against forgetting")
    learned_and_lost: str
    training: Training | None
    config: dict[str, Any]
    data: dict[str, TaskData]
    versions: dict[str, str]
    hardware: Hardware
    stages: dict[str, Stage]
    command: str
    seed: int
    generation: dict[str, Any]


def render(analysis: Analysis) -> str:
    """The analysis as indented JSON."""
    manifest = analysis.manifest
    report = Report(
        run=manifest.name,
        base_model=manifest.base_model,
        sides=analysis.sides,
        digest=analysis.digest,
        headline=headline(analysis),
        gates=[GateReport(**asdict(gate)) for gate in analysis.failed_first],
        tasks={name: _task(task) for name, task in analysis.tasks.items()},
        examples=[ExampleReport(**asdict(example)) for example in analysis.examples],
        probes=[ProbeReport(**asdict(probe)) for probe in analysis.probes],
        guards={name: _guard(guard) for name, guard in analysis.guards.items()},
        bwt=BackwardTransferReport(**asdict(analysis.bwt)) if analysis.bwt else None,
        strategies=analysis.strategies,
        learned_and_lost=analysis.learned_and_lost,
        training=analysis.training,
        # YAML knows dates, JSON does not: `default=str` writes them as they look.
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
    """The form as JSON Schema, as docs/report.schema.json holds it."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"


def _task(task: TaskResult) -> TaskReport:
    fields = asdict(task)
    del fields["name"], fields["single_label"]
    unscored = SidesOf[int](base=fields.pop("unscored_base"), tuned=fields.pop("unscored_tuned"))
    gained, lost = fields.pop("better"), fields.pop("worse")
    return TaskReport(
        **fields,
        unscored=unscored,
        gained=gained,
        lost=lost,
        told_apart=task.told_apart,
        verdict=task.verdict,
        sentence=sentence(task),
    )


def _guard(guard: GuardResult) -> GuardReport:
    fields = asdict(guard)
    del fields["name"]
    return GuardReport(**fields, verdict=guard.verdict, sentence=guard.sentence)
