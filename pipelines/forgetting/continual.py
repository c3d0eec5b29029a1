"""Jobs in sequence: one starts from the model that another has left, and answers for the earlier tasks too."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from pipelines.config.job import Job, load_job
from pipelines.config.messages import did_you_mean
from pipelines.console.activity import doing
from pipelines.data.tokenize_rows import read_split
from pipelines.errors import ConfigError
from pipelines.evaluation.retention import PreparedRetentionEval
from pipelines.evaluation.retention_files import Question
from pipelines.modeling.base_models import find_base_model, load_tokenizer, locate_model_errors
from pipelines.modeling.content_hash import fingerprint
from pipelines.scoring.metric import metric_key, resolve
from pipelines.storage.files import atomic_dir, digest, read_jsonl
from pipelines.storage.run_folder import Run


def ancestor_runs(run: Run) -> Iterator[Run]:
    """The runs that led to where this one starts, the last first."""
    while (folder := run.manifest.get("continue_from")) is not None:
        run = Run.open(Path(folder))
        yield run


def starting_model(job: Job, run: Run) -> Path:
    """The folder of the model that the job starts from: the base, or what the run named by `continue_from` has left.

    An adapter of that run is folded into its base, once, in the run's folder `start/`: the new adapter begins at zero, and
    switched off it is the model before this job. Raises ConfigError for a run that is not finished or has another base.
    """
    continue_from = job.pipeline.continue_from
    if continue_from is None:
        with locate_model_errors(job, "base_model"):
            return find_base_model(job.base_model)
    earlier = _finished(job, Path(continue_from))
    check_earlier_gates(job, earlier)
    left = earlier.path("model")
    if not (left / "adapter_config.json").exists():
        return left
    target = run.path("start")
    base = trained_from(load_job(earlier.path("config.yaml")), earlier)
    made_from = digest(fingerprint(base), fingerprint(left))
    if run.manifest.get("start") != made_from or not target.exists():
        # The earlier run may have been trained again since.
        _merge_adapter(base, left, target)
        run.update(start=made_from)
    return target


def check_earlier_gates(job: Job, last: Run) -> None:
    """Raises ConfigError for a gate RUN/TASK where no run up to `last` has such a task."""
    runs = [last, *ancestor_runs(last)]
    known = [f"{run.name}/{task}" for run in runs for task in load_job(run.path("config.yaml")).pipeline.tasks]
    problems = []
    for name in job.pipeline.report.gates:
        if "/" in name and name not in known and name not in job.pipeline.forgetting.eval_names:
            near = did_you_mean(name, known)
            advice = f"did you mean {near}?" if near else f"the earlier tasks are {', '.join(known)}"
            message = f"pipeline.report.gates.{name}: there is no such earlier task; {advice}"
            problems.append(job.problem(message, "pipeline", "report", "gates", name))
    if problems:
        raise ConfigError(problems)


def trained_from(job: Job, run: Run) -> Path:
    """The folder of the model that a run was trained from: what `starting_model` gave then, whatever has become of an earlier
    run since."""
    start = run.path("start")
    return start if job.pipeline.continue_from is not None and start.exists() else starting_model(job, run)


def _finished(job: Job, folder: Path) -> Run:
    def refuse(message: str) -> ConfigError:
        return ConfigError(job.problem(f"pipeline.continue_from: {message}", "pipeline", "continue_from"))

    if not (folder / "manifest.json").is_file():
        runs = sorted(path.parent.name for path in folder.parent.glob("*/manifest.json"))
        make = shlex.join(["alfine", "run", "CONFIG", "--name", folder.name])
        there = f"the runs there are {', '.join(runs[:10])}" if runs else f"make one with: {make}"
        raise refuse(f"{folder} holds no run; {there}")
    earlier = Run.open(folder)
    if "eval_tuned" not in earlier.manifest["stages"]:
        raise refuse(f"{folder} is not finished; finish it with: {earlier.command}")
    base = earlier.manifest["base_model"]
    if base != job.base_model:
        raise refuse(f"{folder} is tuned from {base}; write base_model: {base}")
    return earlier


def _merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Raises RunError where merging would change the model."""
    from pipelines.modeling.adapters import check_merged, merge_adapter
    from pipelines.modeling.loading import load_causal_lm

    with atomic_dir(target) as staging, doing("merging the earlier run's adapter into its base"):
        whole = merge_adapter(load_causal_lm(base, frozen=True), adapter)
        whole.save_pretrained(staging)  # type: ignore[operator]
        load_tokenizer(base).save_pretrained(staging)
        check_merged(staging, whole, load_causal_lm(staging, frozen=True))


def earlier_tasks(run: Run) -> list[PreparedRetentionEval]:
    """The test rows of every task that the earlier runs trained, each a guard of this one."""
    guards: list[PreparedRetentionEval] = []
    for earlier in ancestor_runs(run):
        job = load_job(earlier.path("config.yaml"))
        table = read_split(earlier.path("data"), "test")
        left = read_jsonl(earlier.path("tuned", "completions.jsonl"))
        for name, task in job.pipeline.tasks.items():
            system, max_new_tokens = job.system_prompt(name), job.max_new_tokens(name)
            metric = metric_key(task.metric, task.normalize)
            mine = [(row, answer) for row, answer in zip(table, left, strict=True) if row["task"] == name]
            guards.append(
                PreparedRetentionEval(
                    f"{earlier.name}/{name}",
                    "task",
                    str(earlier.folder),
                    metric=metric,
                    questions=[
                        Question(row["prompt"], system, row["completion"], row["fields"], max_new_tokens)
                        for row, _ in mine
                    ],
                    own_scores=[resolve(metric).score(answer).value for _, answer in mine],
                )
            )
    return guards
