"""Data sets on the Hub: the commit that a run uses, from its first start to its last."""

from __future__ import annotations

from dataclasses import replace

from pipelines.config.job import Job
from pipelines.data.hub_files import pinned
from pipelines.data.sources import pin_data
from pipelines.errors import DataError
from pipelines.storage.run_folder import Run

MANIFEST_KEY = "hub_data"
"""The key of the manifest with the text of the config and the same text with its commit, by data set."""


def pin_hub_data(job: Job, run: Run) -> Job:
    """The job with the commit of every data set on the Hub written into its `data`.

    A run that is resumed uses the commits that its manifest names; new ones are recorded there. Raises DataError,
    located in the config, for a data set that cannot be found.
    """
    known: dict[str, str] = dict(run.manifest.get(MANIFEST_KEY) or {})
    recorded = dict(known)

    def pin(text: str) -> str:
        if text not in known:
            known[text] = pinned(text)
        return known[text]

    tasks = {}
    for name, task in job.pipeline.tasks.items():
        try:
            tasks[name] = task.model_copy(update={"data": pin_data(task.data, pin)})
        except DataError as error:
            problem = job.problem(f"pipeline.tasks.{name}.data: {error}", "pipeline", "tasks", name, "data")
            raise DataError(problem) from None
    if known != recorded:
        run.update(**{MANIFEST_KEY: known})
    return replace(job, pipeline=job.pipeline.model_copy(update={"tasks": tasks})) if known else job
