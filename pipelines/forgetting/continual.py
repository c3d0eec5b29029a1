"""Continual learning: a job that starts from the model of an earlier run is evaluated on that run's tasks as well."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.job import Job, load_run_job
from pipelines.config.messages import did_you_mean
from pipelines.console.activity import track_activity
from pipelines.data.tokenize_rows import read_test_examples
from pipelines.errors import ConfigError
from pipelines.evaluation.retention import PreparedRetentionEval
from pipelines.modeling.base_models import ensure_base_model, load_tokenizer, locate_model_errors
from pipelines.modeling.content_hash import fingerprint
from pipelines.registry import lazy_import
from pipelines.scoring.metric import metric_from_key, metric_key
from pipelines.storage.files import atomic_dir, digest, read_jsonl
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.modeling import adapters, hardware, loading
else:
    adapters = lazy_import("pipelines.modeling.adapters")  # torch
    hardware = lazy_import("pipelines.modeling.hardware")  # torch
    loading = lazy_import("pipelines.modeling.loading")  # transformers


def earlier_runs(run: Run) -> Iterator[Run]:
    """Yields the runs that led to the model that `run` starts from, the latest first."""
    while (folder := run.manifest.get("continue_from")) is not None:
        run = Run.open(Path(folder))
        yield run


def prepare_starting_model(job: Job, run: Run) -> Path:
    """Returns the folder of the model that the job starts from: the base, or the model of the run `continue_from`.

    An adapter of that run is merged into its base, once, in the folder `start` of `run`: the new adapter starts at
    zero, and disabled it is the model before this job. With quantization the adapter is merged into the unquantized
    base, in main memory; the model is quantized again when it is loaded. Raises ConfigError for a run that is not
    complete or has another base.
    """
    continue_from = job.pipeline.continue_from
    if continue_from is None:
        with locate_model_errors(job, "base_model"):
            return ensure_base_model(job.base_model)
    earlier_run = _complete_run(job, Path(continue_from))
    check_earlier_gates(job, earlier_run)
    earlier_model = earlier_run.path("model")
    if not (earlier_model / "adapter_config.json").exists():
        return earlier_model
    merged_model = run.path("start")
    base = existing_starting_model(load_run_job(earlier_run.folder), earlier_run)
    inputs = digest(fingerprint(base), fingerprint(earlier_model))
    if run.manifest.get("start") != inputs or not merged_model.exists():
        # The earlier run may have been trained again since the last merge.
        with hardware.main_memory() if job.quantization else contextlib.nullcontext():
            # A base that is to be quantized may not fit on the GPU as it is.
            _merge_adapter(base, earlier_model, merged_model)
        run.update(start=inputs)
    return merged_model


def check_earlier_gates(job: Job, earlier_run: Run) -> None:
    """Raises ConfigError for a gate RUN/TASK if neither `earlier_run` nor the runs before it have such a task."""
    runs = [earlier_run, *earlier_runs(earlier_run)]
    known = [f"{run.name}/{task}" for run in runs for task in load_run_job(run.folder).pipeline.tasks]
    problems = []
    for name in job.pipeline.report.gates:
        if "/" in name and name not in known and name not in job.pipeline.forgetting.eval_names:
            near = did_you_mean(name, known)
            advice = f"did you mean {near}?" if near else f"the earlier tasks are {', '.join(known)}"
            message = f"pipeline.report.gates.{name}: there is no such earlier task; {advice}"
            problems.append(job.problem(message, "pipeline", "report", "gates", name))
    if problems:
        raise ConfigError(problems)


def existing_starting_model(job: Job, run: Run) -> Path:
    """Returns the folder of the model that a run was trained from.

    That is what `prepare_starting_model` returned then, even if an earlier run has been trained again since.
    """
    start = run.path("start")
    return start if job.pipeline.continue_from is not None and start.exists() else prepare_starting_model(job, run)


def _complete_run(job: Job, folder: Path) -> Run:
    """Returns the run in `folder`. Raises ConfigError if it is missing, not complete, or of another base."""

    def error(message: str) -> ConfigError:
        return ConfigError(job.problem(f"pipeline.continue_from: {message}", "pipeline", "continue_from"))

    if not (folder / "manifest.json").is_file():
        runs = sorted(path.parent.name for path in folder.parent.glob("*/manifest.json"))
        command = shlex.join(["alfine", "run", "CONFIG", "--name", folder.name])
        advice = f"the runs there are {', '.join(runs[:10])}" if runs else f"create one with: {command}"
        raise error(f"{folder} holds no run; {advice}")
    run = Run.open(folder)
    if "eval_tuned" not in run.manifest["stages"]:
        raise error(f"{folder} is not finished; finish it with: {run.command}")
    base = run.manifest["base_model"]
    if base != job.base_model:
        raise error(f"{folder} is tuned from {base}; write base_model: {base}")
    return run


def _merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Writes the merged model to `target`. Raises RunError if merging changes the predictions."""
    with atomic_dir(target) as staging, track_activity("merging the earlier run's adapter into its base"):
        merged = adapters.merge_adapter(loading.load_causal_lm(base, allow_half_precision=True), adapter)
        merged.save_pretrained(staging)  # type: ignore[operator]
        load_tokenizer(base).save_pretrained(staging)
        adapters.check_merged(staging, merged, loading.load_causal_lm(staging, allow_half_precision=True))


def earlier_tasks(run: Run) -> list[PreparedRetentionEval]:
    """Returns the test rows of every task of the runs before `run`, each task as a retention eval."""
    evals: list[PreparedRetentionEval] = []
    for earlier_run in earlier_runs(run):
        job = load_run_job(earlier_run.folder)
        rows = read_test_examples(earlier_run.path("data"), job)
        completions = read_jsonl(earlier_run.path("tuned", "completions.jsonl"))
        for name, task in job.pipeline.tasks.items():
            metric = metric_key(task.metric, task.normalize)
            task_rows = [pair for pair in zip(rows, completions, strict=True) if pair[0].example.task == name]
            scores = [metric_from_key(metric).score(completion).value for _, completion in task_rows]
            evals.append(
                PreparedRetentionEval(
                    f"{earlier_run.name}/{name}", "task", [row for row, _ in task_rows], metric, scores
                )
            )
    return evals
