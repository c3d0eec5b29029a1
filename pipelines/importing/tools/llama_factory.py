"""LLaMA-Factory: a YAML of arguments, with the data sets described in dataset_info.json."""

from __future__ import annotations

from typing import Any

from pipelines.config.messages import shorten
from pipelines.importing import llama_factory_v1
from pipelines.importing.data_options import DataOptions
from pipelines.importing.draft import JobDraft
from pipelines.importing.hf_adapter import put_lora, put_max_length, put_quantization, refuse_prequantized
from pipelines.importing.hf_trainer import convert_batch_size, convert_duration, convert_optimizer, convert_split
from pipelines.importing.importer import IMPORTERS, Importer
from pipelines.importing.llama_factory_data import put_tasks

STAGES = {
    "pt": "pretraining on text",
    "rm": "a reward model",
    "ppo": "reinforcement learning",
    "dpo": "preferences",
    "kto": "preferences",
}
DEFAULT_CUTOFF, DEFAULT_RATE, DEFAULT_BATCH, DEFAULT_RANK = 2048, 5e-5, 8, 8
PLAIN_TEMPLATES = ("default", "empty", "vanilla", "alpaca", "fewshot")
LOSSES = "the loss is the cross-entropy of the completion"
VARIANTS = {
    "galore": "adamw",
    "apollo": "adamw",
    "badam": "adamw",
    "adam_mini": "adamw",
}
"""Optimizers that LLaMA-Factory switches on by use_NAME, and alfine does not have."""


def convert(draft: JobDraft, options: DataOptions) -> None:
    """Fills the draft. Raises ConfigError for a config that trains on no supervised text."""
    if draft.has("model") and not draft.has("model_name_or_path"):
        llama_factory_v1.convert(draft, options)
        _drop_the_rest(draft)
        return
    _check_stage(draft)
    base_model = draft.get("model_name_or_path")
    if not isinstance(base_model, str):
        draft.refuse("expected a hub id or a folder", "model_name_or_path")
    draft.put("base_model", base_model, "model_name_or_path")
    refuse_prequantized(draft, base_model)
    _put_adapter(draft)
    task_keys = put_max_length(draft, "cutoff_len", DEFAULT_CUTOFF, "truncate_prompt")
    if draft.is_on("mask_history"):
        task_keys["train_on"] = "last"
    draft.account("train_on", "mask_history")
    put_tasks(draft, options, task_keys)
    convert_split(draft, "val_size", 0.0)
    _put_chat_template(draft)
    draft.put("pipeline.seed", draft.whole("seed", default=42), "seed")
    convert_duration(draft, "num_train_epochs", 3.0)
    convert_batch_size(draft, "per_device_train_batch_size", DEFAULT_BATCH)
    convert_optimizer(draft, "optim", DEFAULT_RATE)
    if draft.is_on("use_muon"):
        draft.config["trainer"]["optimizer"] = {"type": "muon"}
        draft.account("trainer.optimizer.type", "use_muon")
    _put_gradient_checkpointing(draft)
    _put_generation(draft)
    _drop_the_rest(draft)


def _check_stage(draft: JobDraft) -> None:
    stage = draft.get("stage", default="sft")
    if stage != "sft":
        what = STAGES.get(str(stage), "another training")
        draft.refuse(f"{shorten(str(stage))} is {what}; alfine trains on prompts and completions", "stage")
    draft.account("stage", "stage")
    if not draft.is_on("do_train") and (draft.is_on("do_predict") or draft.is_on("do_eval")):
        draft.refuse("this config only evaluates; alfine run trains, and alfine predict completes rows")
    if draft.has("export_dir") and not draft.is_on("dataset"):
        draft.refuse("this config writes a merged or quantized model; alfine import reads configs of a training")
    if not draft.is_on("do_train") and not draft.is_on("dataset"):
        draft.refuse("this config is for inference; alfine import reads configs of a training")
    draft.account("alfine run", "do_train")


def _put_adapter(draft: JobDraft) -> None:
    kind = draft.get("finetuning_type", default="lora")
    if kind == "lora":
        put_lora(draft, "lora_rank", DEFAULT_RANK, ("lora_target",), target_all=not draft.has("lora_target"))
    elif kind == "oft":
        put_lora(draft, "oft_rank", 0, ("oft_target",), target_all=not draft.has("oft_target"))
        targets = draft.config["adapter"]["target_modules"]
        draft.config["adapter"] = {
            "type": "oft",
            "oft_block_size": draft.whole("oft_block_size", default=32),
            "target_modules": targets,
        }
        draft.account("adapter.oft_block_size", "oft_block_size")
    elif kind == "freeze":
        message = "freeze trains some layers, which are named in trainer.layers_to_freeze_regex; write lora or full"
        draft.refuse(message, "finetuning_type")
    elif kind != "full":
        draft.refuse(f"{shorten(str(kind))} is not known; write lora, oft or full", "finetuning_type")
    draft.account("adapter", "finetuning_type")
    method = draft.get("quantization_method", default="bnb")
    if draft.is_on("quantization_bit") and kind == "lora":
        put_quantization(draft, draft.whole("quantization_bit"), "quantization_bit")
        if method not in ("bnb", "bitsandbytes"):
            draft.change("quantization_method", f"{shorten(str(method))} is not available; bitsandbytes is used")
        draft.account("quantization", "quantization_method")
        if draft.has("double_quantization"):
            double = bool(draft.get("double_quantization"))
            draft.put("quantization.bnb_4bit_use_double_quant", double, "double_quantization")
    draft.drop("only a LoRA is trained on quantized weights", "quantization_bit", "quantization_method")


def _put_chat_template(draft: JobDraft) -> None:
    name = str(draft.get("template", default=""))
    kwargs: dict[str, Any] = {}
    if name.endswith("_nothink") or draft.get("enable_thinking") is False:
        kwargs["enable_thinking"] = False
    if kwargs:
        sources = ["enable_thinking"] if draft.has("enable_thinking") else ["template"]
        draft.put("pipeline.chat_template_kwargs", kwargs, *sources)
    draft.account("pipeline.chat_template_kwargs", "enable_thinking")
    if draft.is_on("default_system"):
        draft.put("pipeline.system", draft.get("default_system"), "default_system")
    if not name:
        return
    if name in PLAIN_TEMPLATES:
        draft.change(
            "template", f"{name} is a plain text of LLaMA-Factory; the model's own chat template is used, if any"
        )
    else:
        draft.change("template", f"the model's own chat template is used instead of LLaMA-Factory's {shorten(name)}")


def _put_gradient_checkpointing(draft: JobDraft) -> None:
    if draft.get("disable_gradient_checkpointing") is False or draft.is_on("gradient_checkpointing"):
        sources = ("disable_gradient_checkpointing", "gradient_checkpointing")
        draft.put("trainer.enable_gradient_checkpointing", True, *sources)
    draft.account("trainer.enable_gradient_checkpointing", "disable_gradient_checkpointing")


def _put_generation(draft: JobDraft) -> None:
    if draft.is_on("max_new_tokens"):
        draft.put("generation.max_new_tokens", draft.whole("max_new_tokens"), "max_new_tokens")


def _drop_the_rest(draft: JobDraft) -> None:
    for key in draft.source.value:
        if not draft.is_on(key):
            continue
        if key in ("use_dft_loss", "use_eaft_loss", "use_asft_loss"):
            draft.change(key, LOSSES)
        elif key.startswith("use_") and key.removeprefix("use_") in VARIANTS:
            draft.change(key, "this optimizer is not available; adamw is written instead")
        elif key in ("mixture_of_depths", "use_llama_pro", "fp8"):
            draft.change(key, "the model is trained as it is")
        elif key == "train_on_prompt":
            draft.change(key, LOSSES)
    draft.drop("alfine executes no code from a model folder", "trust_remote_code")
    draft.drop(
        "several GPUs are used with backend: {type: ray, trainer: {num_workers: 4}}",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "ray_num_workers",
        "ddp_timeout",
    )


IMPORTERS.register("llama_factory", Importer("a LLaMA-Factory", convert))
