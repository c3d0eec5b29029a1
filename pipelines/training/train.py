"""Hands the job to Ludwig: config, prepared tokens, our trainer; takes back a model folder that can be read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.job import Job
from pipelines.config.lr_schedules import Steps, effective_batch_size, learning_rate
from pipelines.console.activity import doing
from pipelines.data.mixing import mixing_weights, sample_epoch
from pipelines.data.tokenize_rows import open_split
from pipelines.errors import MachineError, RunError
from pipelines.modeling.content_hash import fingerprint
from pipelines.storage.files import atomic_dir, write_json
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.forgetting.build import JobContext
    from pipelines.forgetting.strategy import Strategy
    from pipelines.training.ludwig_dataset import LudwigTokenDataset
    from pipelines.training.retention_callback import RetentionCallback

FEATURES = {
    "input_features": [{"name": "prompt", "type": "text"}],
    "output_features": [{"name": "completion", "type": "text"}],
}
"""Ludwig wants features named; the tokens themselves come prepared."""

ProgressCallback = Callable[[int, int, float | None], None]
"""Called with steps done, steps in all, and the last loss."""


def ludwig_config(job: Job, base_model: Path) -> dict[str, Any]:
    """The Ludwig config of the job: what the YAML says outside `pipeline:`, with the folder of the base model."""
    config = {**job.ludwig, **FEATURES, "base_model": str(base_model)}
    # Several workers share a step's rows, so the step is the same and so is its rate; Ludwig would multiply it.
    config["trainer"] = trainer = {**config["trainer"], "learning_rate_scaling": "constant"}
    if trainer.get("gradient_clipping", {}) is None:
        trainer["gradient_clipping"] = {"clipglobalnorm": None}  # Ludwig would clip at 0.5
    if trainer.get("optimizer", {}).get("type") == "adafactor":
        # With Ludwig's own settings it takes no learning rate; these are what transformers' Trainer takes.
        fixed = {"relative_step": False, "lr": learning_rate(trainer)}
        trainer["optimizer"] = {"scale_parameter": False, **trainer["optimizer"], **fixed}
    if auto_batch_size(job):
        # Ludwig would try batch sizes with rows of its own making; ours finds its size within the first step.
        trainer |= {"batch_size": effective_batch_size(trainer), "effective_batch_size": "auto"}
    # The processes are ours to start (`pipelines.training.ray`); Ludwig's part is the same in each.
    config.pop("backend", None)
    return config


def auto_batch_size(job: Job) -> bool:
    return bool(job.trainer["batch_size"] == "auto")


def uses_fsdp(job: Job) -> bool:
    """Whether each worker holds a part of the frozen weights alone."""
    return bool(job.backend.get("trainer", {}).get("fsdp"))


def train(job: Job, run: Run, base_model: Path, report: ProgressCallback) -> None:
    """Trains, or goes on from the last checkpoint, and leaves run/model with weights, tokenizer, training.json.

    In each of several workers (see `pipelines.training.ray`) it is the same; the coordinator alone writes.
    """
    workdir = run.path("training")
    workdir.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    with _ludwig_log(workdir / (f"ludwig-{rank}.log" if rank else "ludwig.log")):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from ludwig.api import LudwigModel
        from ludwig.globals import set_disable_progressbar

        from pipelines.forgetting.build import JobContext, build_strategies
        from pipelines.modeling.process_group import ProcessGroup
        from pipelines.training.callback import LudwigCallback
        from pipelines.training.ludwig_backend import ProcessGroupBackend
        from pipelines.training.ludwig_registry import register

        register()
        training, validation = _datasets(job, run)
        process_group = ProcessGroup.current()
        context = JobContext(job, run, base_model)
        with process_group.main_process_first():
            strategies = build_strategies(context, training.data.sequences)
            max_nonfinite_steps = job.pipeline.max_nonfinite_steps
            callback = LudwigCallback(
                report,
                strategies,
                _retention_callback(context),
                auto_batch_size(job),
                max_nonfinite_steps,
                uses_fsdp(job),
            )
        # Named, since Ludwig would join any Ray cluster that it finds on the machine.
        backend = ProcessGroupBackend() if process_group.world_size > 1 else "local"
        config = ludwig_config(job, base_model)
        # Ludwig evaluates once an epoch where an epoch has fewer steps than `checkpoints_per_epoch`.
        config["trainer"]["steps_per_checkpoint"] = Steps.of(job.trainer, len(training)).per_evaluation
        config["trainer"].pop("checkpoints_per_epoch", None)
        model = LudwigModel(config, backend=backend, callbacks=[callback], logging_level=logging.INFO)
        set_disable_progressbar(True)  # behind the constructor, which switches it on again
        model.train(
            training_set=training,
            validation_set=validation,
            training_set_metadata=_metadata(),
            model_resume_path=str(workdir),
            skip_save_training_description=True,
            skip_save_training_statistics=True,
            skip_save_log=True,
            skip_save_processed_input=True,
            random_seed=job.pipeline.seed,
        )
        if process_group.rank:
            return
        history = callback.history
        if history is None:
            raise RunError("training ended before its first step")
        history["seconds"] = round(history.get("seconds", 0.0), 1)
        base = run.path("base", "validation.json")
        if base.exists():
            history["validation_loss"].insert(0, {"step": 0, **json.loads(base.read_text(encoding="utf-8"))})
        with atomic_dir(run.path("model")) as staging:
            with doing("saving the model"):
                _export_model(model, workdir, context, history, staging)
            _after_training(context, strategies, staging, history)
            write_json(staging / "training.json", history)
            for strategy in strategies:
                strategy.on_train_end(fingerprint(staging))
        shutil.rmtree(workdir / "model", ignore_errors=True)


def _retention_callback(context: JobContext) -> RetentionCallback | None:
    """Looks at the guards while training, where the YAML asks for it."""
    forgetting = context.job.pipeline.forgetting
    if forgetting.eval_steps is None or forgetting.evals == "none":
        return None
    from pipelines.training.retention_callback import RetentionCallback

    return RetentionCallback(
        context.retention_evals,
        context.prompts,
        forgetting.eval_steps,
        forgetting.max_regression,
        context.base_retention_means,
    )


def _after_training(context: JobContext, strategies: Sequence[Strategy], tuned: Path, history: dict[str, Any]) -> None:
    """What is decided on the finished weights, in the folder `tuned`."""
    if "interpolate" not in context.job.pipeline.forgetting.strategies:
        return
    from pipelines.forgetting.interpolate import Between, bisect_scale

    settings = context.job.pipeline.forgetting.settings("interpolate")
    between = Between(context.model_folder, tuned, context.job.quantization)
    scale, measured = bisect_scale(settings, between.general_loss(context.general_passages))
    between.save(scale)
    history["probe_losses"] = between.probe_losses(scale)
    history["interpolate"] = {"scale": scale, "general_loss": [{"scale": at, "loss": loss} for at, loss in measured]}


def _datasets(job: Job, run: Run) -> tuple[LudwigTokenDataset, LudwigTokenDataset | None]:
    from pipelines.modeling.token_dataset import TokenDataset
    from pipelines.training.ludwig_dataset import LudwigTokenDataset

    trainer, pipeline = job.trainer, job.pipeline
    rows = effective_batch_size(trainer)
    training, validation = (
        TokenDataset.from_table(open_split(run.path("data"), split)) for split in ("train", "validation")
    )
    counts = Counter(training.tasks)
    weights = {name: task.weight for name, task in pipeline.tasks.items()}
    shares = mixing_weights(counts, weights, pipeline.mix, pipeline.temperature)
    shuffle = bool(trainer.get("should_shuffle", True))

    def order(epoch: int) -> list[int]:
        return sample_epoch(training.tasks, shares, pipeline.seed, epoch, shuffle)

    if not len(validation):
        return LudwigTokenDataset(training, rows, order), None
    in_file_order = list(range(len(validation)))
    return (
        LudwigTokenDataset(training, rows, order),
        LudwigTokenDataset(validation, rows, lambda epoch: in_file_order),
    )


def _metadata() -> dict[str, Any]:
    """The little that Ludwig's text features ask of preprocessing, which our rows never go through."""
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


def _export_model(model: Any, workdir: Path, context: JobContext, history: dict[str, Any], folder: Path) -> None:
    """Moves the saved weights to `folder`, and adds the tokenizer and the model card."""
    from pipelines.modeling.base_models import load_tokenizer
    from pipelines.training.model_card import write_model_card

    shutil.move(workdir / "model" / "model_weights", folder)
    load_tokenizer(context.model_folder).save_pretrained(folder)
    write_model_card(folder, context.job, context.model_folder, context.model_id)
    llm = model.model
    if llm.begins_elsewhere and (adapter := context.job.adapter):
        kind = adapter["type"]
        note = f"adapter {kind}: with random weights at its start it changes what the base says; training did not start there"
        history.setdefault("notes", []).append(note)
    history["probe_losses"] = llm.probe_losses
    parameters = list(llm.model.parameters())
    history["parameters"] = sum(p.numel() for p in parameters)
    history["trainable_parameters"] = sum(p.numel() for p in parameters if p.requires_grad)
    history["peak_memory_bytes"] = _peak_memory()


def _peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _ludwig_log(path: Path) -> Iterator[None]:
    """Ludwig's chatter, warnings and prints go to a file; the terminal keeps its progress bar."""
    root = logging.getLogger()
    ludwig = logging.getLogger("ludwig")
    handler = logging.FileHandler(path, encoding="utf-8")
    before = (root.handlers[:], root.level, ludwig.propagate)
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            yield
    except MemoryError:
        raise MachineError(
            "training ran out of memory; write trainer.batch_size: auto, and the rows of a step "
            "as trainer.effective_batch_size"
        ) from None
    finally:
        root.handlers, root.level, ludwig.propagate = before
        logging.captureWarnings(False)
        handler.close()
