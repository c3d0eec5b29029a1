"""A run: all stages in order, from the config and the data to the report."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.checks.hardware import configure_hardware, locate_hardware_errors
from pipelines.config.job import TEMPLATE_FILE, Job
from pipelines.config.optional_packages import check_optional_packages
from pipelines.console.activity import track_activity
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.data.format_detection import resolve_formats
from pipelines.data.sources import describe_data, open_source, source_sha256
from pipelines.errors import AlfineError
from pipelines.evaluation.completions import generation_settings
from pipelines.evaluation.retention import configured_retention_evals
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.module_names import check_module_names
from pipelines.planning.plan import make_plan
from pipelines.planning.summary import duration_line, memory_line, work_line
from pipelines.planning.target_hardware import find_hardware
from pipelines.registry import lazy_import
from pipelines.scoring.sandbox import prepare_sandbox
from pipelines.stages.context import StageContext
from pipelines.stages.digests import Stage, stage_digests
from pipelines.stages.hub_revisions import pin_hub_data
from pipelines.storage.cache import check_cache
from pipelines.storage.environment import machine, versions
from pipelines.storage.files import digest, file_sha256, os_errors_as_machine_error, write_text
from pipelines.storage.run_folder import Run, check_same_config, config_entries

if TYPE_CHECKING:
    from pipelines.forgetting import continual
    from pipelines.modeling import hardware as hardware_module
    from pipelines.modeling import memory
    from pipelines.stages import evaluate, few_shot, prepare, report, train
else:
    # torch, and Ludwig in `train`: 3 s to half a minute that an error in the config or the cache does not need
    continual = lazy_import("pipelines.forgetting.continual")
    memory = lazy_import("pipelines.modeling.memory")
    hardware_module = lazy_import("pipelines.modeling.hardware")
    prepare = lazy_import("pipelines.stages.prepare")
    evaluate = lazy_import("pipelines.stages.evaluate")
    few_shot = lazy_import("pipelines.stages.few_shot")
    train = lazy_import("pipelines.stages.train")
    report = lazy_import("pipelines.stages.report")


def run_job(job: Job, run: Run, command: str, reporter: ConsoleReporter) -> None:
    """Runs every stage that is not complete. An interrupted run is resumed by the same call.

    `command` is recorded in the manifest as the command that resumes or repeats the run. Raises ConfigError, DataError
    or ModelError, before the first stage if possible; RunError for a folder of another config or process;
    MachineError for the disk, the memory or permissions.
    """
    check_optional_packages(job)
    with os_errors_as_machine_error(run.folder), run.locked():
        check_same_config(job.path, run)
        check_cache()
        StageRunner(job, run, command, reporter).run()


class StageRunner:
    """The stages of one run, in their order."""

    def __init__(self, job: Job, run: Run, command: str, reporter: ConsoleReporter) -> None:
        """Finds the model that training starts from. Raises ModelError or ConfigError if that is not possible."""
        with reporter.status(f"Base model {job.base_model}"):
            quiet_libraries()
            self.hardware = configure_hardware(job)
            starting_model_folder = continual.prepare_starting_model(job, run)
            model_fingerprint = fingerprint(starting_model_folder)
        check_module_names(job, starting_model_folder)
        job = resolve_formats(pin_hub_data(job, run))
        job = replace(job, prompt_date=run.manifest.get("prompt_date") or date.today().isoformat())
        self.context = StageContext(
            job, run, reporter, starting_model_folder, model_fingerprint, functools.cache(file_sha256)
        )
        self.command = command
        self.digests: dict[Stage, str] = {}

    def run(self) -> None:
        """Runs the stages that are not complete."""
        context, digests = self.context, self.digests
        with track_activity("reading the data files"):
            digests.update(stage_digests(context.job, context.model_fingerprint, context.file_sha256))
        self._record_start()
        context.reporter.note(f"hardware: {self.hardware.summary()}")
        self._print_plan()
        self._warn_changed_data()
        self._prepare_sandbox()

        self._stage("prepare", lambda: prepare.prepare_data(context))
        with evaluate.EvaluatorSession(context, "base") as base:
            self._stage("eval_base", lambda: evaluate.evaluate_rows(base))
            self._stage("eval_few_shot", lambda: few_shot.evaluate_few_shot(base))
            self._stage(
                "eval_base_retention", lambda: evaluate.evaluate_retention(base, digests["eval_base_retention"])
            )
        self._stage("train", lambda: train.train_model(context, digests["train"]))
        self._add_to_digests(fingerprint(context.run.path("model")))
        with evaluate.EvaluatorSession(context, "tuned") as tuned:
            self._stage("eval_tuned", lambda: evaluate.evaluate_rows(tuned))
            self._stage("eval_tuned_retention", lambda: evaluate.evaluate_retention(tuned))
        self._stage("report", lambda: report.write_run_report(context))

    def _stage(self, stage: Stage, work: Callable[[], None]) -> None:
        def work_or_machine_error() -> None:
            with memory.machine_error_on_out_of_memory(f"stage {stage}"), locate_hardware_errors(self.context.job):
                work()

        if not self.context.run.run_stage(stage, self.digests[stage], work_or_machine_error):
            self.context.reporter.note(f"{stage}: up to date")

    def _add_to_digests(self, tuned_id: str) -> None:
        """Makes the fingerprint of the tuned model part of the digests of the stages after the training."""
        after_training: tuple[Stage, ...] = ("eval_tuned", "eval_tuned_retention", "report")
        for stage in after_training:
            self.digests[stage] = digest(self.digests[stage], tuned_id)

    def _record_start(self) -> None:
        """Writes the manifest's entries about the run itself, and `config.yaml`: the config with its defaults."""
        job, run = self.context.job, self.context.run
        run.update(
            name=run.name,
            **config_entries(job.path, run.folder),
            command=self.command,
            seed=job.pipeline.seed,
            base_model=job.base_model,
            base_revision=self._base_revision(),
            continue_from=job.pipeline.continue_from,
            generation=self._generation_settings(),
            versions=versions(),
            hardware={**machine(), **hardware_module.current_hardware().describe()},
        )
        write_text(run.path("config.yaml"), yaml.safe_dump(job.resolved(), sort_keys=False, allow_unicode=True))
        if job.template_source is not None:
            write_text(run.path(TEMPLATE_FILE), job.template_source)

    def _print_plan(self) -> None:
        """Prints and records the plan of a run that has not been trained yet."""
        job, run, reporter = self.context.job, self.context.run, self.context.reporter
        if "train" in run.manifest["stages"]:
            return
        with contextlib.suppress(AlfineError):  # the stages report it
            with track_activity("planning"):
                plan = make_plan(job, find_hardware(None, job.pipeline.hardware), self.context.starting_model_folder)
            reporter.note(work_line(plan))
            (reporter.note if plan.fits else reporter.warn)(memory_line(plan))
            reporter.note(duration_line(plan))
            if not plan.fits and plan.edits:
                reporter.warn(f"what makes it fit: {' '.join(plan.edits[0].overrides)}; see `alfine plan`")
            run.update(plan=plan.record())

    def _base_revision(self) -> str:
        """The commit of a base model from the Hub, else the fingerprint of the model."""
        folder = self.context.starting_model_folder
        return folder.name if folder.parent.name == "snapshots" else self.context.model_fingerprint

    def _generation_settings(self) -> dict[str, Any]:
        """The generation settings with their defaults; `max_new_tokens` by task if the tasks differ."""
        job = self.context.job
        limits = {task: job.max_new_tokens(task) for task in job.pipeline.tasks}
        limit: Any = limits if len(set(limits.values())) > 1 else next(iter(limits.values()))
        return generation_settings({**self.context.generation, "max_new_tokens": limit}, self.context.prompt_format)

    def _warn_changed_data(self) -> None:
        tasks = self.context.job.pipeline.tasks
        for name, entry in self.context.run.manifest.get("data", {}).items():
            if name not in tasks or describe_data(tasks[name].data) != entry["file"]:
                continue
            if source_sha256(open_source(tasks[name].data), self.context.file_sha256) != entry["sha256"]:
                self.context.reporter.warn(
                    f"{entry['file']} has changed since task {name} was prepared; dependent stages will be rerun"
                )

    def _prepare_sandbox(self) -> None:
        """Compiles the sandbox if a metric runs code."""
        pipeline = self.context.job.pipeline
        evals = configured_retention_evals(pipeline.forgetting).values()
        metrics = {task.metric for task in pipeline.tasks.values()} | {spec.metric_name for spec in evals}
        prepare_sandbox(metrics, self.context.reporter.status)
