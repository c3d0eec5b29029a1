"""The tuned model of a run, and its prompt format, as the run's own evaluation uses them."""

from __future__ import annotations

from pipelines.checks.hardware import configure_hardware
from pipelines.config.job import Job, load_run_job
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import RunError
from pipelines.evaluation.completions import LoadedModel
from pipelines.forgetting.continual import existing_starting_model
from pipelines.storage.run_folder import Run


def tuned_job(run: Run) -> Job:
    """The job of a run that has been trained. Raises RunError if it has not."""
    if "train" not in run.manifest["stages"]:
        raise RunError(f"{run.folder} has no tuned model yet; finish it with: {run.command}")
    return load_run_job(run.folder)


def load_tuned(run: Run, job: Job) -> LoadedModel:
    """Loads the tuned model of a run, as the run's own evaluation does."""
    configure_hardware(job)
    base = existing_starting_model(job, run)
    loaded = LoadedModel.from_folder(base, job.chat_template_settings(), job.quantization, allow_vllm=True)
    return loaded.with_tuned_model(run.path("model"))


def tuned_prompt_format(run: Run, job: Job) -> PromptFormat:
    """The prompt format of a run's tuned model. Loads no model."""
    return PromptFormat.from_folder(existing_starting_model(job, run), job.chat_template_settings())
