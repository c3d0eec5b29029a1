"""The Ludwig config of a job. Importing this module does not import Ludwig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.config.lr_schedules import StepCounts, effective_batch_size, peak_learning_rate

FEATURES = {
    "input_features": [{"name": "prompt", "type": "text"}],
    "output_features": [{"name": "completion", "type": "text"}],
}
"""Ludwig requires named features. They hold no data: the trainer gets tokenized examples."""


def ludwig_config(job: Job, starting_model_folder: Path, num_train_rows: int) -> dict[str, Any]:
    """Returns the Ludwig config of `job`: the YAML without `pipeline:`, with the folder of the base model.

    Where Ludwig interprets a key otherwise than the YAML's documentation, the value is adapted.
    """
    config = {**job.ludwig, **FEATURES, "base_model": str(starting_model_folder)}
    # The processes share the rows of a step, so the step and its learning rate are those of one process.
    config["trainer"] = trainer = {**config["trainer"], "learning_rate_scaling": "constant"}
    # Ludwig evaluates once per epoch if an epoch has fewer steps than `checkpoints_per_epoch`.
    trainer["steps_per_checkpoint"] = StepCounts.from_trainer(trainer, num_train_rows).per_evaluation
    trainer.pop("checkpoints_per_epoch", None)
    if trainer.get("gradient_clipping", {}) is None:
        trainer["gradient_clipping"] = {"clipglobalnorm": None}  # for null, Ludwig clips at 0.5
    if trainer.get("optimizer", {}).get("type") == "adafactor":
        # Ludwig's defaults ignore the learning rate. These are the settings of transformers' Trainer.
        fixed = {"relative_step": False, "lr": peak_learning_rate(trainer)}
        trainer["optimizer"] = {"scale_parameter": False, **trainer["optimizer"], **fixed}
    if auto_batch_size(job):
        # Ludwig would search for a batch size with synthetic rows. `MicroBatches` measures it in the first step.
        trainer |= {"batch_size": effective_batch_size(trainer), "effective_batch_size": "auto"}
    # `pipelines.training.ray` starts the processes. Each of them trains with Ludwig's local backend.
    config.pop("backend", None)
    return config


def auto_batch_size(job: Job) -> bool:
    """Whether the size of the micro-batches is measured (`trainer.batch_size: auto`)."""
    return bool(job.trainer["batch_size"] == "auto")


def uses_fsdp(job: Job) -> bool:
    """Whether the frozen weights are sharded over the processes (`backend.trainer.fsdp: frozen`)."""
    return bool(job.backend.get("trainer", {}).get("fsdp"))


def feature_metadata() -> dict[str, Any]:
    """Returns the preprocessing metadata that Ludwig's text features require. Ludwig preprocesses no rows here."""
    feature: dict[str, Any] = {
        "idx2str": [],
        "str2idx": {},
        "str2freq": {},
        "str2idf": None,
        "vocab_size": 0,
        "max_sequence_length": 0,
        "pad_idx": 0,
        "padding_symbol": "",
        "unknown_symbol": "",
        "preprocessing": {},
    }
    return {"prompt": dict(feature), "completion": dict(feature)}
