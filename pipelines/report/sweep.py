"""The page of a bake-off: what each strategy gained against what it forgot, over seeds and items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import Problem, RunError
from pipelines.report import plots
from pipelines.report.analysis import analyse
from pipelines.report.formatting import count, duration, interval, number, one_line, signed
from pipelines.report.results import Analysis
from pipelines.report.tables import Column, print_table
from pipelines.scoring.statistics import crossed_interval
from pipelines.storage.files import write_text
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    from rich.console import Console

DEVELOPMENT = "development"
"""The guard that knobs are chosen on: other text than that of the guards, which stay untouched until the end."""
MARGIN = 1.0
"""Points of task score that a recommended strategy may lie below the plain run."""


@dataclass(frozen=True)
class Measure:
    """A mean over seeds and items with its 95 % interval, and the same of the difference from the plain run."""

    value: float
    ci95: tuple[float, float]
    against_none: float
    against_none_ci95: tuple[float, float]


@dataclass(frozen=True)
class ArmResult:
    """One strategy with the knob that was chosen for it."""

    strategy: str
    knob: str
    gain: Measure
    """Mean over the tasks of the change of their score, in points."""
    forgotten: Measure
    """Loss on neutral text since the base, in nats per token."""
    knowledge: Measure | None
    """Change in accuracy on multiple choice, in points."""
    drift: Measure | None
    """KL(base ‖ tuned) on general answers, in nats per token."""
    seconds: float
    """Mean time of training."""
    memory_bytes: int
    """Peak memory of training, the greatest over the seeds."""
    on_front: bool = False
    """No other strategy gains more and forgets less."""


@dataclass(frozen=True)
class BakeOff:
    config: str
    seeds: int
    tries: int
    arms: list[ArmResult]
    recommended: str

    @property
    def headline(self) -> str:
        best, plain = self.arm(self.recommended), self.arm("none")
        lost = f"{signed(best.forgotten.value, 'nats/token')} nats/token on neutral text"
        what = f"{signed(best.gain.value)} points on the tasks, {lost}"
        if best.strategy == "none":
            return f"Nothing beats the plain run: {what}."
        ordinary = f"{signed(plain.gain.value)} and {signed(plain.forgotten.value, 'nats/token')} without"
        return f"Recommended: {best.strategy} ({best.knob}): {what}; {ordinary}."

    @property
    def yaml_line(self) -> str:
        """What to write into the job."""
        best = self.arm(self.recommended)
        key, value = best.knob.split(": ")
        if key == "learning_rate":
            return f"forgetting: {best.strategy}    # under trainer: learning_rate: {value}"
        strategy, knob = key.split(".")
        return f"forgetting: {{strategy: {best.strategy}, {strategy}: {{{knob}: {value}}}}}"

    def arm(self, strategy: str) -> ArmResult:
        return next(arm for arm in self.arms if arm.strategy == strategy)


def read_bake_off(folder: Path) -> BakeOff:
    """From `arms.json` and the run folders that it names. Raises RunError."""
    try:
        plan = json.loads((folder / "arms.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        message = "no arm of the bake-off is finished; repeat its `alfine bakeoff` command to go on with it"
        raise RunError(Problem(message, str(folder / "arms.json"))) from None
    runs = {arm["strategy"]: [analyse(folder / name) for name in arm["runs"]] for arm in plan["arms"]}
    results = [_arm(arm["strategy"], arm["knob"], runs[arm["strategy"]], runs["none"]) for arm in plan["arms"]]
    results = [_placed(arm, results) for arm in results]
    return BakeOff(plan["config"], plan["seeds"], plan["tries"], results, _recommended(results))


def _arm(strategy: str, knob: str, runs: Sequence[Analysis], plain: Sequence[Analysis]) -> ArmResult:
    text = _guard_items(runs, "text_nll"), _guard_items(plain, "text_nll")
    if not text[0]:
        raise RunError("a bake-off compares on neutral text; give the job a guard of kind text_nll, or evals: bundled")
    trainings = [run.training for run in runs if run.training is not None]
    return ArmResult(
        strategy=strategy,
        knob=knob,
        gain=_measure([_task_items(run) for run in runs], [_task_items(run) for run in plain]),
        forgotten=_measure(*text),
        knowledge=_optional(_guard_items(runs, "multiple_choice"), _guard_items(plain, "multiple_choice")),
        drift=_optional(_guard_items(runs, "kl"), _guard_items(plain, "kl")),
        seconds=sum(training.seconds for training in trainings) / len(trainings),
        memory_bytes=max(training.peak_memory_bytes or 0 for training in trainings),
    )


def _task_items(run: Analysis) -> list[float]:
    """The change of every test row, weighted so that the mean over rows is the mean over tasks."""
    known = [one for one in run.examples if one.base_score is not None or one.tuned_score is not None]
    sizes = {task: sum(one.task == task for one in known) for task in run.tasks}
    return [one.gain * len(known) / (len(sizes) * sizes[one.task]) for one in known]


def _guard_items(runs: Sequence[Analysis], kind: str) -> list[list[float]]:
    """Per run, the change of every item of the guards of this kind, those alone that knobs were not chosen on."""
    found = [
        [
            change
            for name, changes in run.guard_changes.items()
            if run.guards[name].kind == kind and name != DEVELOPMENT
            for change in changes
        ]
        for run in runs
    ]
    return found if all(found) else []


def _measure(items: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> Measure:
    import numpy as np

    shortest = min(len(one) for one in [*items, *plain])
    mine = np.asarray([one[:shortest] for one in items])
    difference = mine - np.asarray([one[:shortest] for one in plain])
    return Measure(float(mine.mean()), crossed_interval(mine), float(difference.mean()), crossed_interval(difference))


def _optional(items: list[list[float]], plain: list[list[float]]) -> Measure | None:
    return _measure(items, plain) if items and plain else None


def _placed(arm: ArmResult, arms: Sequence[ArmResult]) -> ArmResult:
    beaten = any(
        other.gain.value >= arm.gain.value
        and other.forgotten.value <= arm.forgotten.value
        and (other.gain.value, other.forgotten.value) != (arm.gain.value, arm.forgotten.value)
        for other in arms
    )
    return ArmResult(**{**arm.__dict__, "on_front": not beaten})


def _recommended(arms: Sequence[ArmResult]) -> str:
    """The one that forgets least among those whose tasks are not worse than the plain run's by more than MARGIN."""
    fit = [arm for arm in arms if arm.gain.against_none >= -MARGIN]
    return min(fit, key=lambda arm: (arm.forgotten.value, arm.seconds)).strategy


def write_bake_off(folder: Path) -> BakeOff:
    """bakeoff.html, bakeoff.md and bakeoff.json in the bake-off's folder."""
    found = read_bake_off(folder)
    whole = {**asdict(found), "headline": found.headline, "yaml": found.yaml_line}
    write_text(folder / "bakeoff.json", dump(whole, indent=2) + "\n")
    write_text(folder / "bakeoff.md", _markdown(found))
    write_text(folder / "bakeoff.html", _html(found))
    return found


HEADINGS = (
    "strategy",
    "knob",
    "gain (points)",
    "forgotten (nats/token)",
    "knowledge (points)",
    "drift (nats/token)",
    "training",
    "memory",
)


def rows(found: BakeOff) -> list[list[str]]:
    """The table as text, the same in every form; * stands before what is on the front."""
    return [
        [
            ("* " if arm.on_front else "") + arm.strategy,
            arm.knob,
            _cell(arm.gain, "points"),
            _cell(arm.forgotten, "nats/token"),
            _cell(arm.knowledge, "points"),
            _cell(arm.drift, "nats/token"),
            duration(arm.seconds),
            f"{arm.memory_bytes / 1e9:.1f} GB",
        ]
        for arm in found.arms
    ]


def _cell(measure: Measure | None, unit: str) -> str:
    return "" if measure is None else f"{signed(measure.value, unit)} ({interval(measure.ci95, unit)})"


def _about(found: BakeOff) -> str:
    tries = "one setting of each knob" if found.tries == 1 else f"{found.tries} settings of each knob tried"
    return (
        f"{one_line(found.config, 200)}, {count(found.seeds, 'seed')}, {tries}; intervals are over seeds and items. "
        "* is on the Pareto front: no other strategy gains more and forgets less."
    )


def _markdown(found: BakeOff) -> str:
    lines = [f"## {found.headline}", "", f"    {found.yaml_line}", ""]
    lines += [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows(found)]
    return "\n".join([*lines, "", _about(found), ""])


def _html(found: BakeOff) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("sweep.html.jinja").render(
        found=found,
        headings=HEADINGS,
        rows=rows(found),
        about=_about(found),
        figure=Markup(plots.front(points(found))),
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
    )


def print_bake_off(found: BakeOff, console: Console) -> None:
    """The recommendation and the table."""
    from rich.text import Text

    columns = [Column(heading, words=heading in ("strategy", "knob"), left=True) for heading in HEADINGS]
    console.print(Text(found.headline, style="bold"))
    console.print()
    print_table(columns, rows(found), console)
    console.print(Text(found.yaml_line), soft_wrap=True)  # whole, to be pasted
    console.print(Text(_about(found)))


def points(found: BakeOff) -> list[dict[str, Any]]:
    """What the figure shows."""
    return [
        {
            "name": one_line(arm.strategy, 30),
            "x": arm.forgotten.value,
            "x_ci": arm.forgotten.ci95,
            "y": arm.gain.value,
            "y_ci": arm.gain.ci95,
            "front": arm.on_front,
            "label": number(arm.gain.value),
        }
        for arm in found.arms
    ]
