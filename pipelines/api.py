"""The Python API, which `from pipelines import …` offers: the verbs of the command line as functions.

Every function raises an `AlfineError` for a mistake of the user and for a system error; nothing is printed except the
progress of a `ConsoleReporter` on stderr.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checks.job import CheckResult, check_job
from pipelines.config.job import Job, load_job
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import AlfineError, ConfigError, DataError, MachineError, ModelError, Problem, RunError
from pipelines.registry import lazy_import
from pipelines.report import Analysis, analyse, write_report
from pipelines.storage.run_folder import Run
from pipelines.version import __version__

if TYPE_CHECKING:
    from pipelines import compare as comparison
    from pipelines import run as pipeline
    from pipelines.prediction import predict as prediction
else:
    # torch: 3 s that loading and checking a job, or reading a report, does not need
    comparison = lazy_import("pipelines.compare")
    prediction = lazy_import("pipelines.prediction.predict")
    pipeline = lazy_import("pipelines.run")

__all__ = [
    "AlfineError",
    "Analysis",
    "CheckResult",
    "ConfigError",
    "ConsoleReporter",
    "DataError",
    "Job",
    "MachineError",
    "ModelError",
    "Problem",
    "Run",
    "RunError",
    "__version__",
    "analyse",
    "check_job",
    "compare_models",
    "load_job",
    "predict",
    "run_job",
    "write_report",
]


def run_job(job: Job, folder: str | Path, reporter: ConsoleReporter | None = None) -> Run:
    """Fine-tunes and compares base and tuned model, in `folder`; an interrupted run is resumed by the same call.

    Returns the finished run, for `analyse(run.folder)` and `predict`. Raises ConfigError, DataError or ModelError,
    RunError for a folder of another config or one that another process uses, MachineError for disk, memory or
    permissions.
    """
    run = Run(Path(folder))
    command = shlex.join(["alfine", "run", str(job.path), "--name", run.name, *job.overrides])
    pipeline.run_job(job, run, command, reporter or ConsoleReporter())
    return Run.open(run.folder)


def predict(
    run: Run | str | Path,
    file: str | Path | Sequence[str | Path],
    task: str | None = None,
    raw: bool = False,
    with_base: bool = False,
    reporter: ConsoleReporter | None = None,
) -> Iterator[dict[str, Any]]:
    """Completes the rows of `file` with the tuned model of `run`, in their order.

    `file` is a file, a pattern, a folder or a data set on the Hub, as `data` of a task is, or several of them. Files
    may be larger than memory. They are read twice: rows are checked before the model is loaded.

    Each row is returned with two more columns: `prediction`, and `prediction_finish_reason` ("stop" or "length"), and
    with `prediction_reasoning` if the model was prompted for reasoning, or wrote some.
    `task` is the task of the rows, if the run has several and the rows no column `task`; with `raw` the column `prompt`
    is used without a template. With `with_base` the rows also get the completions of the base model, in
    `base_prediction`, `base_prediction_finish_reason` and so on. Raises DataError for rows that cannot be used, before
    the model is loaded.
    """
    quiet_libraries()
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    files = [file] if isinstance(file, str | Path) else list(file)
    return prediction.predict(opened, files, task, reporter or ConsoleReporter(), raw, with_base)


def compare_models(
    first: str | Path,
    second: str | Path,
    folder: str | Path,
    prompts: str | Path | None = None,
    task: str | None = None,
    raw: bool = False,
    metric: str = "rouge",
    reporter: ConsoleReporter | None = None,
) -> Analysis:
    """Compares two models on the same prompts, writes the report into `folder` and returns its analysis.

    A model is a run folder, a model folder or a model id of the Hub. Without `prompts` (a file of rows) the test rows
    of the first run are used. `metric` scores raw prompts that have a column `reference`.
    """
    quiet_libraries()
    models, target = (str(first), str(second)), Path(folder)
    command = shlex.join(["alfine", "compare", *models, "--output", str(target)])
    file = None if prompts is None else Path(prompts)
    comparison.compare_models(models, file, task, raw, metric, target, command, reporter or ConsoleReporter())
    return write_report(target)
