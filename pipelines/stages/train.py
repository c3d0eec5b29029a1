"""Stage `train`: trains the model, in this process or on a Ray cluster, into the folder `model/` of the run."""

from __future__ import annotations

import json
import shutil

from pipelines.stages.context import StageContext
from pipelines.storage.files import write_text
from pipelines.training.ray import train_on_ray, uses_ray
from pipelines.training.train import train


def train_model(context: StageContext, inputs_digest: str) -> None:
    """Trains, or resumes from the last checkpoint in `training/` if the file `training/inputs` has this digest."""
    job, run, reporter = context.job, context.run, context.reporter
    # Without this check the checkpoints of another config would be resumed.
    digest_file = run.path("training", "inputs")
    if digest_file.exists() and digest_file.read_text(encoding="utf-8") != inputs_digest:
        shutil.rmtree(digest_file.parent)
    write_text(digest_file, inputs_digest)
    with reporter.training_steps("Training") as report_step:
        (train_on_ray if uses_ray(job) else train)(job, run, context.starting_model_folder, report_step)
    history = json.loads(run.path("model", "training.json").read_text(encoding="utf-8"))
    for note in history.get("notes", []):
        reporter.warn(note)
    if skipped := history.get("skipped_steps"):
        reporter.warn(f"{len(skipped)} steps skipped (non-finite loss): {', '.join(map(str, skipped))}")
