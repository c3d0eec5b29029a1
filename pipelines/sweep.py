"""Several strategies against forgetting on the same job: equal data, steps, seeds and tries at their one knob."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.forgetting import SETTINGS, STRATEGIES, parse_strategies
from pipelines.config.job import Job, load_job
from pipelines.config.messages import did_you_mean
from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import ConfigError
from pipelines.evaluation.retention import retention_eval_configs
from pipelines.evaluation.retention_files import bundled_file
from pipelines.report.sweep import VALIDATION_EVAL
from pipelines.run import run_job
from pipelines.storage.files import read_jsonl, write_json
from pipelines.storage.records import SweepTrial, SweepVariant, SweepVariants
from pipelines.storage.run_folder import Run

KNOBS = {
    "ewc": ("weight", (1.0, 10.0, 0.1, 100.0)),
    "si": ("weight", (1.0, 10.0, 0.1, 100.0)),
    "l2sp": ("weight", (0.01, 0.1, 1.0, 0.001)),
    "replay": ("fraction", (0.05, 0.1, 0.2, 0.02)),
    "distill": ("weight", (1.0, 3.0, 0.3, 10.0)),
    "interpolate": ("max_loss_increase", (0.02, 0.01, 0.005, 0.05)),
}
RATES = (1.0, 0.3, 0.1, 0.03)
"""Factors on the learning rate: the knob of what has none of its own. A low rate is the control to beat."""


@dataclass(frozen=True)
class Arm:
    """One strategy with one setting of its knob."""

    strategy: str
    knob: str
    """As it stands in the YAML, such as `ewc.weight: 10`."""
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        return f"{self.strategy}-{self.knob.replace(': ', '-')}"


def arms(job: Job, strategy: str, tries: int) -> list[Arm]:
    """`tries` settings of the strategy's knob, the usual one first."""
    own = next((word for word in parse_strategies(strategy) if word in KNOBS), None)
    adapter = ("adapter=null",) if "full" in strategy.split("+") else ()
    if own is None:
        rate = float(job.trainer.get("learning_rate", 2e-4)) * (0.1 if adapter else 1.0)
        settings = [("trainer.learning_rate", rate * factor) for factor in RATES[:tries]]
        return [
            Arm(
                strategy,
                f"learning_rate: {value:g}",
                (*adapter, f"pipeline.forgetting.strategy={strategy}", f"{key}={value:g}"),
            )
            for key, value in settings
        ]
    name, values = KNOBS[own]
    return [
        Arm(
            strategy,
            f"{own}.{name}: {value:g}",
            (*adapter, f"pipeline.forgetting.strategy={strategy}", f"pipeline.forgetting.{own}.{name}={value:g}"),
        )
        for value in values[:tries]
    ]


def parse_arms(text: str) -> list[str]:
    """`none,ewc,replay+distill` as a list. Raises ConfigError for a word that is no strategy."""
    strategies = [part.strip() for part in text.split(",") if part.strip()]
    for word in (word for strategy in strategies for word in strategy.split("+")):
        if word not in STRATEGIES:
            near = did_you_mean(word, STRATEGIES)
            advice = f"did you mean {near}?" if near else f"there are {', '.join(STRATEGIES)}"
            raise ConfigError(f"--strategies: unknown strategy {word!r}; {advice}")
    if not strategies:
        raise ConfigError(f"--strategies is empty; write none,ewc or others of {', '.join(SETTINGS)}")
    return list(dict.fromkeys(["none", *strategies]))


def bake_off(
    config: Path,
    overrides: Sequence[str],
    strategies: Sequence[str],
    seeds: int,
    tries: int,
    folder: Path,
    reporter: ConsoleReporter,
) -> None:
    """Runs every arm into `folder`, one run folder each, and writes `folder/variants.json`. Finished runs are not run again.

    The knob is chosen with the first seed, by the sum of what the job cares for on rows that no report shows: the
    validation loss of the tasks and the loss of general text, both in nats per token.
    """
    job = load_job(config, overrides)
    first = job.pipeline.seed
    variants: list[SweepVariant] = []
    for strategy in strategies:
        candidates = arms(job, strategy, tries)
        losses = [_run(config, overrides, arm, first, folder, reporter) for arm in candidates]
        best = min(range(len(candidates)), key=lambda number: losses[number]["sum"])
        for seed in range(first + 1, first + seeds):
            _run(config, overrides, candidates[best], seed, folder, reporter)
        variants.append(
            SweepVariant(
                strategy=strategy,
                hyperparameter=candidates[best].knob,
                runs=[f"{candidates[best].folder}-seed{seed}" for seed in range(first, first + seeds)],
                trials=[
                    SweepTrial(hyperparameter=arm.knob, **loss) for arm, loss in zip(candidates, losses, strict=True)
                ],
            )
        )
        sweep = SweepVariants(config=str(config), seeds=seeds, num_trials=tries, variants=variants)
        write_json(folder / "variants.json", sweep.model_dump())


def _run(
    config: Path, overrides: Sequence[str], arm: Arm, seed: int, folder: Path, reporter: ConsoleReporter
) -> dict[str, Any]:
    """Runs one arm with one seed, and what it lost on rows that the report does not show, in nats per token."""
    given = [*overrides, *arm.overrides, f"pipeline.seed={seed}"]
    guards = load_job(config, given).pipeline.forgetting
    wanted = {name: guard.model_dump(exclude_none=True) for name, guard in retention_eval_configs(guards).items()}
    wanted[VALIDATION_EVAL] = {"kind": "text_nll", "data": str(bundled_file("general/passages.jsonl"))}
    given.append(f"pipeline.forgetting.evals={json.dumps(wanted)}")
    run = Run(folder / f"{arm.folder}-seed{seed}")
    reporter.note(f"{arm.strategy}, {arm.knob}, seed {seed}")
    # As a run of its own, whose name `alfine run` takes.
    command = shlex.join(["alfine", "run", str(config), "--name", run.name.replace("+", "-"), *given])
    run_job(load_job(config, given), run, command, reporter)
    training = json.loads(run.path("model", "training.json").read_text(encoding="utf-8"))
    task = min((float(entry["loss"]) for entry in training["validation_loss"]), default=0.0)
    general = list(_development(run))
    loss = sum(general) / len(general)
    return {"task": task, "general": loss, "sum": task + loss}


def _development(run: Run) -> Iterator[float]:
    for line in read_jsonl(run.path("retention", "tuned.jsonl")):
        if line["eval"] == VALIDATION_EVAL:
            yield float(line["score"])
