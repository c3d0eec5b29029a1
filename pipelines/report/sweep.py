"""The report of a sweep: the gain of each strategy against forgetting, and what it forgot, over seeds and items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from pipelines.errors import Problem, RunError
from pipelines.report import plots
from pipelines.report.analysis import analyse
from pipelines.report.columns import ResultColumn
from pipelines.report.formatting import count, duration, interval, one_line, signed
from pipelines.report.html import page_environment, style_sheet
from pipelines.report.results import Analysis
from pipelines.report.tables import print_table
from pipelines.scoring.metric import Unit
from pipelines.scoring.statistics import pigeonhole_bootstrap_interval
from pipelines.storage.files import write_text
from pipelines.storage.strict_json import dump
from pipelines.storage.sweep_records import SweepVariants

BASELINE = "none"
"""The strategy that the others are compared with."""
VALIDATION_EVAL = "development"
"""The retention eval on which hyperparameters are chosen. Its text differs from that of the evals in the report."""
NON_INFERIORITY_MARGIN = 1.0
"""Points of task score by which a recommended strategy may be worse than the baseline."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items with its 95 % interval, and the same of the difference from the baseline."""

    value: float
    ci95: tuple[float, float]
    vs_baseline: float
    vs_baseline_ci95: tuple[float, float]


@dataclass(frozen=True)
class VariantResult:
    """A strategy with the hyperparameter that was chosen for it."""

    strategy: str
    hyperparameter: str
    """The hyperparameter as in the YAML, such as `ewc.weight: 10`."""
    gain: Estimate
    """The mean over the tasks of the change of their score, in points."""
    text_loss_increase: Estimate
    """The increase of the text NLL since the base, in nats per token."""
    accuracy_change: Estimate | None
    """The change of the accuracy on multiple choice, in points."""
    kl_divergence: Estimate | None
    """KL(base ‖ tuned) on general answers, in nats per token."""
    seconds: float
    """The mean time of training."""
    peak_memory_bytes: int
    """The peak memory of training: the maximum over the seeds."""
    pareto_optimal: bool = False
    """Whether no other variant has at least the same gain with at most the same increase of the text NLL."""


@dataclass(frozen=True)
class Sweep:
    """The results of all variants of a sweep."""

    config: str
    seeds: int
    num_trials: int
    """The number of hyperparameter values that were tried per strategy."""
    variants: list[VariantResult]
    recommended: str
    """The strategy of the recommended variant."""

    @property
    def headline(self) -> str:
        """The recommendation in one line."""
        best, baseline = self.variant(self.recommended), self.variant(BASELINE)
        increase = signed(best.text_loss_increase.value, Unit.NATS_PER_TOKEN)
        changes = f"{signed(best.gain.value)} points on the tasks, {increase} nats/token text NLL"
        if best.strategy == BASELINE:
            return f"No strategy beats the baseline: {changes}."
        baseline_increase = signed(baseline.text_loss_increase.value, Unit.NATS_PER_TOKEN)
        baseline_changes = f"baseline {signed(baseline.gain.value)} and {baseline_increase}"
        return f"Recommended: {best.strategy} ({best.hyperparameter}): {changes}; {baseline_changes}."

    @property
    def yaml_line(self) -> str:
        """The line for the YAML of the job."""
        best = self.variant(self.recommended)
        key, value = best.hyperparameter.split(": ")
        if key == "learning_rate":
            return f"forgetting: {best.strategy}    # under trainer: learning_rate: {value}"
        section, name = key.split(".")
        return f"forgetting: {{strategy: {best.strategy}, {section}: {{{name}: {value}}}}}"

    def variant(self, strategy: str) -> VariantResult:
        """The variant of a strategy."""
        return next(variant for variant in self.variants if variant.strategy == strategy)


def read_sweep(folder: Path) -> Sweep:
    """The results from `variants.json` and the run folders that it names. Raises RunError."""
    path = folder / "variants.json"
    try:
        variants_file = SweepVariants.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        message = "no variant of the sweep is finished; repeat its `alfine sweep` command to resume it"
        raise RunError(Problem(message, str(path))) from None
    runs = {variant.strategy: [analyse(folder / name) for name in variant.runs] for variant in variants_file.variants}
    results = [
        _variant_result(variant.strategy, variant.hyperparameter, runs[variant.strategy], runs[BASELINE])
        for variant in variants_file.variants
    ]
    results = [replace(result, pareto_optimal=_is_pareto_optimal(result, results)) for result in results]
    return Sweep(variants_file.config, variants_file.seeds, variants_file.num_trials, results, _recommended(results))


def _variant_result(
    strategy: str, hyperparameter: str, runs: Sequence[Analysis], baseline: Sequence[Analysis]
) -> VariantResult:
    text_changes = _retention_changes(runs, "text_nll")
    if not text_changes:
        raise RunError("a sweep compares the text NLL; add a retention eval of kind text_nll, or evals: bundled")
    trainings = [run.training for run in runs if run.training is not None]
    return VariantResult(
        strategy=strategy,
        hyperparameter=hyperparameter,
        gain=_estimate([_task_gains(run) for run in runs], [_task_gains(run) for run in baseline]),
        text_loss_increase=_estimate(text_changes, _retention_changes(baseline, "text_nll")),
        accuracy_change=_optional_estimate(runs, baseline, "multiple_choice"),
        kl_divergence=_optional_estimate(runs, baseline, "kl"),
        seconds=sum(training.seconds for training in trainings) / len(trainings),
        peak_memory_bytes=max(training.peak_memory_bytes or 0 for training in trainings),
    )


def _task_gains(run: Analysis) -> list[float]:
    """The gain of every test row, weighted so that the mean over rows is the mean over tasks.

    The gains of different runs are paired by position. A row that could not be scored on one model therefore counts
    with a gain of 0; only a row that could not be scored on either is left out.
    """
    scored = [example for example in run.examples if example.base_score is not None or example.tuned_score is not None]
    sizes = {task: sum(example.task == task for example in scored) for task in run.tasks}
    return [example.gain * len(scored) / (len(sizes) * sizes[example.task]) for example in scored]


def _retention_changes(runs: Sequence[Analysis], kind: str) -> list[list[float]]:
    """Per run, the change of every item of the evals of this kind, except those of VALIDATION_EVAL."""
    items = [
        [
            change
            for name, changes in run.retention_changes.items()
            if run.retention[name].kind == kind and name != VALIDATION_EVAL
            for change in changes
        ]
        for run in runs
    ]
    return items if all(items) else []


def _estimate(items: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Estimate:
    shortest = min(len(values) for values in [*items, *baseline])
    values = np.asarray([run_values[:shortest] for run_values in items])
    difference = values - np.asarray([run_values[:shortest] for run_values in baseline])
    return Estimate(
        float(values.mean()),
        pigeonhole_bootstrap_interval(values),
        float(difference.mean()),
        pigeonhole_bootstrap_interval(difference),
    )


def _optional_estimate(runs: Sequence[Analysis], baseline: Sequence[Analysis], kind: str) -> Estimate | None:
    items, baseline_items = _retention_changes(runs, kind), _retention_changes(baseline, kind)
    return _estimate(items, baseline_items) if items and baseline_items else None


def _is_pareto_optimal(variant: VariantResult, variants: Sequence[VariantResult]) -> bool:
    return not any(
        other.gain.value >= variant.gain.value
        and other.text_loss_increase.value <= variant.text_loss_increase.value
        and (other.gain.value, other.text_loss_increase.value) != (variant.gain.value, variant.text_loss_increase.value)
        for other in variants
    )


def _recommended(variants: Sequence[VariantResult]) -> str:
    """The strategy with the smallest increase of the text NLL among those that are not inferior on the tasks."""
    candidates = [variant for variant in variants if variant.gain.vs_baseline >= -NON_INFERIORITY_MARGIN]
    return min(candidates, key=lambda variant: (variant.text_loss_increase.value, variant.seconds)).strategy


def write_sweep_report(folder: Path) -> Sweep:
    """Writes sweep.html, sweep.md and sweep.json into the folder of the sweep."""
    sweep = read_sweep(folder)
    content = {**asdict(sweep), "headline": sweep.headline, "yaml": sweep.yaml_line}
    write_text(folder / "sweep.json", dump(content, indent=2) + "\n")
    write_text(folder / "sweep.md", _markdown(sweep))
    write_text(folder / "sweep.html", _html(sweep))
    return sweep


COLUMNS: Sequence[ResultColumn[VariantResult]] = (
    ResultColumn(
        key="name",
        heading="Strategy",
        words=True,
        text=lambda variant: ("* " if variant.pareto_optimal else "") + variant.strategy,
    ),
    ResultColumn(
        key="hyperparameter", heading="Hyperparameter", words=True, text=lambda variant: variant.hyperparameter
    ),
    ResultColumn(
        key="gain", heading="Gain (points)", left=True, text=lambda variant: _estimate_text(variant.gain, Unit.POINTS)
    ),
    ResultColumn(
        key="text_loss_increase",
        heading="Text NLL increase (nats/token)",
        left=True,
        text=lambda variant: _estimate_text(variant.text_loss_increase, Unit.NATS_PER_TOKEN),
    ),
    ResultColumn(
        key="accuracy_change",
        heading="Multiple choice (points)",
        left=True,
        text=lambda variant: _estimate_text(variant.accuracy_change, Unit.POINTS),
    ),
    ResultColumn(
        key="kl_divergence",
        heading="KL from base (nats/token)",
        left=True,
        text=lambda variant: _estimate_text(variant.kl_divergence, Unit.NATS_PER_TOKEN),
    ),
    ResultColumn(key="seconds", heading="Training", left=True, text=lambda variant: duration(variant.seconds)),
    ResultColumn(
        key="peak_memory_bytes",
        heading="Memory",
        left=True,
        text=lambda variant: f"{variant.peak_memory_bytes / 1e9:.1f} GB",
    ),
)
"""The columns of the table, the same in every form. * marks Pareto-optimal variants."""


def sweep_rows(sweep: Sweep) -> list[list[str]]:
    """The cells of the table."""
    return [[column.text(variant) for column in COLUMNS] for variant in sweep.variants]


def _estimate_text(estimate: Estimate | None, unit: Unit) -> str:
    return "" if estimate is None else f"{signed(estimate.value, unit)} ({interval(estimate.ci95, unit)})"


def _about(sweep: Sweep) -> str:
    trials = f"{count(sweep.num_trials, 'hyperparameter value')} per strategy"
    return (
        f"{one_line(sweep.config, 200)}, {count(sweep.seeds, 'seed')}, {trials}; 95 % CIs are over seeds and items. "
        "* is Pareto-optimal: no other strategy gains at least as much and forgets at most as much."
    )


def _markdown(sweep: Sweep) -> str:
    lines = [f"## {sweep.headline}", "", f"    {sweep.yaml_line}", ""]
    lines += [f"| {' | '.join(column.heading for column in COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(text.replace('|', ' ') for text in row)} |" for row in sweep_rows(sweep)]
    return "\n".join([*lines, "", _about(sweep), ""])


def _html(sweep: Sweep) -> str:
    template = page_environment().get_template("sweep.html.jinja")
    return template.render(
        sweep=sweep,
        columns=COLUMNS,
        about=_about(sweep),
        figure=Markup(plots.pareto_front([_pareto_point(variant) for variant in sweep.variants])),
        style=style_sheet(),
    )


def print_sweep(sweep: Sweep, console: Console) -> None:
    """Prints the recommendation and the table."""
    console.print(Text(sweep.headline, style="bold"))
    console.print()
    print_table(COLUMNS, sweep_rows(sweep), console)
    console.print(Text(sweep.yaml_line), soft_wrap=True)  # on one line, to be copied
    console.print(Text(_about(sweep)))


def _pareto_point(variant: VariantResult) -> plots.ParetoPoint:
    return plots.ParetoPoint(
        name=one_line(variant.strategy, 30),
        gain=variant.gain.value,
        gain_ci95=variant.gain.ci95,
        text_loss_increase=variant.text_loss_increase.value,
        text_loss_increase_ci95=variant.text_loss_increase.ci95,
        pareto_optimal=variant.pareto_optimal,
    )
