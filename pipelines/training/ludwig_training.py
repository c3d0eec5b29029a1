"""One training with Ludwig, from the tokenized rows of a run to its model folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ludwig.api import LudwigModel
from ludwig.globals import set_disable_progressbar

from pipelines.config.job import Job
from pipelines.errors import RunError
from pipelines.forgetting.build import build_strategies
from pipelines.forgetting.context import ForgettingContext
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.hardware import configure_hardware, reset_peak_memory
from pipelines.modeling.process_group import ProcessGroup
from pipelines.storage.files import atomic_dir
from pipelines.storage.run_folder import Run
from pipelines.training.callback import LudwigCallback
from pipelines.training.export import export_model
from pipelines.training.ludwig_backend import ProcessGroupBackend
from pipelines.training.ludwig_config import auto_batch_size, feature_metadata, ludwig_config, uses_fsdp
from pipelines.training.ludwig_dataset import LudwigTokenDataset, load_datasets
from pipelines.training.ludwig_registry import register
from pipelines.training.retention_callback import RetentionCallback

if TYPE_CHECKING:
    from pipelines.training.train import ProgressCallback


def train_and_export(job: Job, run: Run, starting_model_folder: Path, progress: ProgressCallback) -> None:
    """Trains a model and writes the run's folder `model`. Called by `pipelines.training.train.train` only."""
    register()
    configure_hardware(job.pipeline.hardware)
    reset_peak_memory()
    process_group = ProcessGroup.current()
    context = ForgettingContext(job, run, starting_model_folder)
    training_set, validation_set = load_datasets(job, run)
    with process_group.main_process_first():
        strategies = build_strategies(context)
        retention_callback = _retention_callback(context)
    callback = LudwigCallback(
        progress,
        [strategy for strategy in strategies if strategy.acts_during_training],
        retention_callback,
        auto_batch_size=auto_batch_size(job),
        max_nonfinite_steps=job.pipeline.max_nonfinite_steps,
        fsdp=uses_fsdp(job),
        offload_optimizer=job.pipeline.hardware.offload_optimizer,
    )
    model = _ludwig_model(context, len(training_set), process_group, callback)
    _run_ludwig_training(model, context, training_set, validation_set)
    if process_group.rank:
        return
    history = _history(callback, run)
    with atomic_dir(run.path("model")) as staging_dir:
        export_model(model.model, context, strategies, history, staging_dir)
        for strategy in strategies:
            strategy.on_train_end(fingerprint(staging_dir))
    shutil.rmtree(run.path("training", "model"), ignore_errors=True)


def _retention_callback(context: ForgettingContext) -> RetentionCallback | None:
    """Returns the callback that runs the retention evals every `eval_steps` steps, None if it is not configured."""
    forgetting = context.job.pipeline.forgetting
    if forgetting.eval_steps is None or forgetting.evals == "none":
        return None
    return RetentionCallback(
        context.prepared_retention_evals,
        context.prompt_format,
        forgetting.eval_steps,
        forgetting.max_regression,
        context.base_retention_means,
    )


def _ludwig_model(
    context: ForgettingContext, num_train_rows: int, process_group: ProcessGroup, callback: LudwigCallback
) -> LudwigModel:
    # The backend is explicit, since Ludwig joins any Ray cluster that it detects on the machine.
    backend = ProcessGroupBackend() if process_group.world_size > 1 else "local"
    config = ludwig_config(context.job, context.starting_model_folder, num_train_rows)
    model = LudwigModel(config, backend=backend, callbacks=[callback], logging_level=logging.INFO)
    set_disable_progressbar(True)  # after the constructor, which enables it
    return model


def _run_ludwig_training(
    model: LudwigModel,
    context: ForgettingContext,
    training_set: LudwigTokenDataset,
    validation_set: LudwigTokenDataset | None,
) -> None:
    """Runs Ludwig's training loop. Checkpoints and the saved model are in the run's folder `training`."""
    model.train(
        training_set=training_set,
        validation_set=validation_set,
        training_set_metadata=feature_metadata(),
        model_resume_path=str(context.run.path("training")),
        skip_save_training_description=True,
        skip_save_training_statistics=True,
        skip_save_log=True,
        skip_save_processed_input=True,
        random_seed=context.job.pipeline.seed,
    )


def _history(callback: LudwigCallback, run: Run) -> dict[str, Any]:
    """Returns the history of a finished training, with the base's validation loss as step 0."""
    history = callback.history
    if history is None:
        raise RunError("training ended before its first step")
    history["seconds"] = round(history.get("seconds", 0.0), 1)
    base_validation = run.path("base", "validation.json")
    if base_validation.exists():
        base_loss = json.loads(base_validation.read_text(encoding="utf-8"))
        history["validation_loss"].insert(0, {"step": 0, **base_loss})
    return history
