"""A sweep: several strategies against forgetting on one job, with the same data, steps, seeds and number of trials.

A variant is a strategy, or several joined by +, as in `forgetting.strategy`. A trial is a variant with one value of its
hyperparameter. The best trial of each variant is trained with every seed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.config.forgetting import parse_strategies, strategy_words
from pipelines.config.job import Job, load_job
from pipelines.config.messages import did_you_mean
from pipelines.config.strategy_registry import STRATEGIES, default_sweep_variants
from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import ConfigError
from pipelines.evaluation.data_files import bundled_file
from pipelines.evaluation.retention import configured_retention_evals
from pipelines.report.sweep import BASELINE, VALIDATION_EVAL
from pipelines.run import run_job
from pipelines.storage.files import write_json
from pipelines.storage.records import RetentionRecord, read_records
from pipelines.storage.run_folder import Run
from pipelines.storage.sweep_records import SweepTrial, SweepVariant, SweepVariants

LR_FACTORS = (1.0, 0.3, 0.1, 0.03)
"""Factors on the learning rate, which is the hyperparameter of variants without another. A low rate is the baseline to
beat."""
FULL_FINETUNING_LR_FACTOR = 0.1
"""The factor on an adapter's learning rate if every weight is trained."""


@dataclass(frozen=True)
class Trial:
    """A variant with one value of its hyperparameter."""

    variant: str
    hyperparameter: str
    """The hyperparameter as in the YAML, such as `ewc.weight: 10`."""
    overrides: tuple[str, ...]
    """The overrides of the config, as on the command line."""

    def run_name(self, seed: int) -> str:
        return f"{self.variant}-{self.hyperparameter.replace(': ', '-')}-seed{seed}"


class Losses(NamedTuple):
    """The measures by which trials are compared, in nats per token, on rows that no report shows."""

    task: float
    """The lowest validation loss of the tasks."""
    general: float
    """The loss on general text."""


@dataclass(frozen=True)
class SweepRunner:
    """A job and the folder for the runs of its variants."""

    config: Path
    overrides: Sequence[str]
    folder: Path
    reporter: ConsoleReporter

    def run(self, variants: Sequence[str], num_seeds: int, num_trials: int) -> None:
        """Runs every trial into its own run folder and writes `variants.json`. Complete runs are not repeated.

        The trial of a variant is chosen with the job's own seed, by the sum of its losses.
        """
        job = load_job(self.config, self.overrides)
        seeds = range(job.pipeline.seed, job.pipeline.seed + num_seeds)
        results: list[SweepVariant] = []
        for variant in variants:
            trials = make_trials(job, variant, num_trials)
            losses = [self.run_trial(trial, seeds[0]) for trial in trials]
            best = min(range(len(trials)), key=lambda index: sum(losses[index]))
            for seed in seeds[1:]:
                self.run_trial(trials[best], seed)
            results.append(
                SweepVariant(
                    strategy=variant,
                    hyperparameter=trials[best].hyperparameter,
                    runs=[trials[best].run_name(seed) for seed in seeds],
                    trials=[
                        SweepTrial(hyperparameter=trial.hyperparameter, **loss._asdict(), sum=sum(loss))
                        for trial, loss in zip(trials, losses, strict=True)
                    ],
                )
            )
            variants_file = SweepVariants(
                config=str(self.config), seeds=num_seeds, num_trials=num_trials, variants=results
            )
            write_json(self.folder / "variants.json", variants_file.model_dump())

    def run_trial(self, trial: Trial, seed: int) -> Losses:
        """Runs a trial with one seed, with a retention eval that only the choice of the trial sees."""
        overrides = [*self.overrides, *trial.overrides, f"pipeline.seed={seed}"]
        evals = configured_retention_evals(load_job(self.config, overrides).pipeline.forgetting)
        specs = {name: spec.model_dump(exclude_none=True) for name, spec in evals.items()}
        specs[VALIDATION_EVAL] = {"kind": "text_nll", "data": str(bundled_file("general/passages.jsonl"))}
        overrides.append(f"pipeline.forgetting.evals={json.dumps(specs)}")
        run = Run(self.folder / trial.run_name(seed))
        self.reporter.note(f"{trial.variant}, {trial.hyperparameter}, seed {seed}")
        # `alfine run` does not accept a + in a name.
        command = shlex.join(["alfine", "run", str(self.config), "--name", run.name.replace("+", "-"), *overrides])
        run_job(load_job(self.config, overrides), run, command, self.reporter)
        return _losses(run)


def make_trials(job: Job, variant: str, num_trials: int) -> list[Trial]:
    """The first `num_trials` trials of a variant, in the order of the search space."""
    strategy = next((name for name in parse_strategies(variant) if name in STRATEGIES), None)
    is_full = "full" in variant.split("+")
    if strategy is None:
        rate = float(job.trainer.get("learning_rate", 2e-4)) * (FULL_FINETUNING_LR_FACTOR if is_full else 1.0)
        label, key = "learning_rate", "trainer.learning_rate"
        values = [rate * factor for factor in LR_FACTORS[:num_trials]]
    else:
        space = STRATEGIES[strategy].search_space
        label, key = f"{strategy}.{space.key}", f"pipeline.forgetting.{strategy}.{space.key}"
        values = list(space.values[:num_trials])
    common = (*(("adapter=null",) if is_full else ()), f"pipeline.forgetting.strategy={variant}")
    return [Trial(variant, f"{label}: {value:g}", (*common, f"{key}={value:g}")) for value in values]


def parse_variants(text: str | None) -> list[str]:
    """The variants of a text such as `none,ewc,replay+distill`, the baseline first; all default variants for None.

    Raises ConfigError for an unknown strategy.
    """
    if text is None:
        return default_sweep_variants()
    words = strategy_words()
    variants = [part.strip() for part in text.split(",") if part.strip()]
    for name in (name for variant in variants for name in variant.split("+")):
        if name not in words:
            similar = did_you_mean(name, words)
            advice = f"did you mean {similar}?" if similar else f"the strategies are {', '.join(words)}"
            raise ConfigError(f"--strategies: unknown strategy {name!r}; {advice}")
    if not variants:
        raise ConfigError(f"--strategies is empty; write none,ewc or others of {', '.join(STRATEGIES)}")
    return list(dict.fromkeys([BASELINE, *variants]))


def _losses(run: Run) -> Losses:
    training = json.loads(run.path("model", "training.json").read_text(encoding="utf-8"))
    records = read_records(run.path("retention", "tuned.jsonl"), RetentionRecord)
    scores = [float(record.score) for record in records if record.eval == VALIDATION_EVAL and record.score is not None]
    # Step 0 is the base, whose weights a training never keeps.
    task = min((float(entry["loss"]) for entry in training["validation_loss"] if entry["step"] > 0), default=0.0)
    return Losses(task, sum(scores) / len(scores))
