"""Settings that LLaMA-Factory and axolotl share, because both train with transformers' Trainer and PEFT."""

from __future__ import annotations

import math
from typing import Any

from pipelines.config.messages import KeyPath, shorten
from pipelines.importing.draft import JobDraft

OPTIMIZERS: dict[str, str] = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_torch_xla": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "adagrad": "adagrad",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_8bit": "lion_8bit",
    "paged_lion": "paged_lion",
    "paged_lion_32bit": "paged_lion",
    "paged_lion_8bit": "paged_lion_8bit",
    "muon": "muon",
    "radam": "radam",
    "rmsprop": "rmsprop",
    "sgd": "sgd",
}
"""Optimizer of transformers → that of Ludwig."""
WITH_WEIGHT_DECAY = ("adagrad", "lion", "radam", "rmsprop", "sgd")
DECAYS: dict[str, str | None] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": None,
    "constant_with_warmup": None,
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "one_cycle": "one_cycle",
}
"""Schedule of transformers → `decay` of Ludwig."""
NO_DECAY_WARMUP = ("one_cycle",)
DEFAULT_WARMUP = 0.03
CLIPPING = 1.0
"""Default of `max_grad_norm` in transformers; Ludwig's is 0.5."""


def convert_duration(draft: JobDraft, epochs_key: str, default_epochs: float) -> None:
    """Epochs or steps, and how often the model is evaluated and saved."""
    steps = draft.whole("max_steps", default=-1)
    if steps is not None and steps > 0:
        draft.put("trainer.train_steps", steps, "max_steps")
        draft.drop("max_steps limits the training", epochs_key)
    else:
        draft.drop("off", "max_steps")
        epochs = draft.number(epochs_key, default=default_epochs) or default_epochs
        draft.put("trainer.epochs", max(math.ceil(epochs), 1), epochs_key, comment=_default(draft, epochs_key))
        if not float(epochs).is_integer():
            draft.change(epochs_key, f"alfine trains whole epochs: {math.ceil(epochs)} instead of {epochs:g}")
    for key in ("eval_steps", "save_steps"):
        interval = draft.get(key)
        if isinstance(interval, int) and interval >= 1 and "steps_per_checkpoint" not in draft.config["trainer"]:
            draft.put("trainer.steps_per_checkpoint", interval, key)
        else:
            draft.drop("the model is evaluated and saved at the same steps", key)
    for key in ("evals_per_epoch", "saves_per_epoch"):
        times = draft.get(key)
        trainer = draft.config["trainer"]
        free = "steps_per_checkpoint" not in trainer and "checkpoints_per_epoch" not in trainer
        if isinstance(times, int) and times >= 1 and free:
            draft.put("trainer.checkpoints_per_epoch", times, key)
        else:
            draft.drop("the model is evaluated and saved at the same steps", key)
    draft.put(
        "trainer.early_stop",
        draft.whole("early_stopping_patience", default=-1),
        "early_stopping_patience",
        comment=None if draft.is_on("early_stopping_patience") else "the number of epochs is fixed, as in the source",
    )


def convert_batch_size(draft: JobDraft, size_key: str, default: int) -> None:
    """The rows of an optimizer step: those of a micro-batch times the accumulated ones."""
    size = draft.whole(size_key, default=default) or default
    accumulation = draft.whole("gradient_accumulation_steps", default=1) or 1
    if draft.whole("batch_size") is not None and not draft.has("gradient_accumulation_steps"):
        draft.put("trainer.batch_size", draft.whole("batch_size"), "batch_size")
        draft.drop("alfine chooses the micro-batch for the memory at hand", size_key)
        return
    draft.put("trainer.batch_size", size * accumulation, size_key, "gradient_accumulation_steps")
    draft.note("trainer.batch_size is that of one GPU; multiply it by the number of GPUs that the source was for")


def convert_optimizer(draft: JobDraft, optimizer_key: str, default_rate: float) -> None:
    """Optimizer, learning rate, schedule and clipping."""
    rate = draft.number("learning_rate", default=default_rate) or default_rate
    draft.put("trainer.learning_rate", rate, "learning_rate", comment=_default(draft, "learning_rate"))
    _convert_schedule(draft, rate)
    name = str(draft.get(optimizer_key, default="adamw_torch"))
    kind = OPTIMIZERS.get(name.lower())
    section: dict[str, Any] = {"type": kind or "adamw"}
    if kind is None:
        draft.change(optimizer_key, f"{shorten(name)} is not available; adamw is written instead")
    is_adam = "adamw" in section["type"] or section["type"] == "radam"
    if is_adam or any(part in section["type"] for part in WITH_WEIGHT_DECAY):
        section["weight_decay"] = draft.number("weight_decay", default=0.0)
        draft.account("trainer.optimizer.weight_decay", "weight_decay")
    betas = [draft.number("adam_beta1", default=0.9), draft.number("adam_beta2", default=0.999)]
    epsilon = draft.number("adam_epsilon", default=1e-8)
    if is_adam and betas != [0.9, 0.999]:
        section["betas"] = betas
    if is_adam and epsilon != 1e-8:
        section["eps"] = epsilon
    adam_keys = ("adam_beta1", "adam_beta2", "adam_epsilon")
    if is_adam:
        draft.account("trainer.optimizer", *adam_keys)
    draft.drop(f"{section['type']} has no such setting", "weight_decay", *adam_keys)
    draft.put("trainer.optimizer", section, optimizer_key, comment=_default(draft, optimizer_key))
    norm = draft.number("max_grad_norm", default=CLIPPING)
    draft.put(
        "trainer.gradient_clipping",
        {"clipglobalnorm": norm or None},
        "max_grad_norm",
        comment=_default(draft, "max_grad_norm"),
    )


def _convert_schedule(draft: JobDraft, rate: float) -> None:
    key = "lr_scheduler" if draft.has("lr_scheduler") else "lr_scheduler_type"
    default = "cosine" if "axolotl" in draft.tool else "linear"
    name = str(draft.get(key, default=default)).lower()
    decay = DECAYS.get(name, "cosine")
    if name not in DECAYS:
        draft.change(key, f"{shorten(name)} is not available; cosine is written instead")
    section: dict[str, Any] = {"decay": decay}
    ratio, steps = draft.number("warmup_ratio"), draft.number("warmup_steps")
    total = draft.number("max_steps", default=-1) or -1
    warmup: float = 0.0
    source: KeyPath = ("warmup_ratio",) if ratio else ("warmup_steps",)
    if ratio:
        warmup = ratio
    elif steps and steps < 1:
        warmup = steps
    elif steps:
        warmup = round(min(steps / total, 0.99), 6) if total > 0 else DEFAULT_WARMUP
        if total <= 0:
            draft.change("warmup_steps", f"the warm-up is a fraction of the steps here; {DEFAULT_WARMUP} is written")
    if warmup and decay not in NO_DECAY_WARMUP:
        section["warmup_fraction"] = min(warmup, 0.99)
        draft.account("trainer.learning_rate_scheduler.warmup_fraction", source)
    elif decay == "inverse_sqrt":
        section["warmup_fraction"] = DEFAULT_WARMUP
        draft.change(key, f"inverse_sqrt requires a warm-up; {DEFAULT_WARMUP} of the steps is written")
    draft.drop("there is no warm-up, or another key sets it", "warmup_ratio", "warmup_steps")
    minimum = draft.number("cosine_min_lr_ratio") or draft.number("lr_scheduler_kwargs", "min_lr_rate")
    absolute = draft.number("lr_scheduler_kwargs", "min_lr")
    if decay == "cosine" and (minimum or absolute):
        eta_min = absolute or (minimum or 0) * rate
        section = {**section, "eta_min": eta_min} if eta_min < rate else {**section, "decay": None}
        sources = ("cosine_min_lr_ratio", ("lr_scheduler_kwargs", "min_lr_rate"), ("lr_scheduler_kwargs", "min_lr"))
        draft.account("trainer.learning_rate_scheduler.eta_min", *sources)
    draft.put("trainer.learning_rate_scheduler", section, key, comment=_default(draft, key))


def convert_split(draft: JobDraft, validation_key: str, default: float) -> None:
    """The fraction of validation rows. A fraction for the test is kept for the comparison of base and tuned model."""
    validation = draft.number(validation_key, default=default) or 0.0
    if validation >= 1:
        draft.change(validation_key, "the number of validation rows is a fraction here; 0.05 is written")
        validation = 0.05
    test = 0.1 if validation < 0.8 else (1 - validation) / 2
    draft.put("pipeline.split", {"validation": validation, "test": test}, validation_key)
    draft.note(f"a fraction {test:g} of the rows is kept for the test, on which base and tuned model are compared")


def _default(draft: JobDraft, key: str) -> str | None:
    """The comment on a value that the source does not set."""
    return None if draft.get(key) is not None else "default of the source"
