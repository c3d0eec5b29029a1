"""axolotl: a YAML with `datasets`, adapters, and the arguments of transformers' Trainer."""

from __future__ import annotations

from typing import Any

from pipelines.config.messages import shorten
from pipelines.importing.axolotl_data import put_tasks
from pipelines.importing.data_options import DataOptions, find_file, written_path
from pipelines.importing.draft import JobDraft
from pipelines.importing.hf_adapter import put_lora, put_max_length, put_quantization, refuse_prequantized
from pipelines.importing.hf_trainer import convert_batch_size, convert_duration, convert_optimizer, convert_split
from pipelines.importing.importer import IMPORTERS, Importer

DEFAULT_RANK, DEFAULT_RATE = 8, 5e-5
OTHER_TRAININGS = {
    "rl": "trains on preferences or rewards; alfine trains on prompts and completions",
    "reward_model": "trains a reward model; alfine trains on prompts and completions",
    "process_reward_model": "trains a reward model; alfine trains on prompts and completions",
    "pretraining_dataset": "trains on text without prompts; alfine trains on prompts and completions",
    "diffusion": "trains a diffusion model; alfine trains models that predict the next token",
    "processor_type": "is for images or sound; alfine trains only on text",
}
"""Keys of trainings that have no counterpart."""
EXCESS = {"drop": "drop", "truncate": "truncate_prompt", "raise": "refuse"}
"""`excess_length_strategy` of axolotl → `too_long`."""
CHANGED_KEYS = {
    "unfrozen_parameters": "all weights are trained; trainer.layers_to_freeze_regex freezes some",
    "lora_modules_to_save": "only the adapter is trained",
    "lora_target_parameters": "only modules with a weight matrix are adapted, not parameters",
    "peft_layers_to_transform": "all layers are adapted",
    "lora_model_dir": "training starts with a new adapter; pipeline.continue_from: runs/NAME starts from a run",
    "tokens": "the tokenizer stays as it is",
    "added_tokens_overrides": "the tokenizer stays as it is",
    "train_on_inputs": "the loss is computed on the completion only",
    "relora": "one adapter is trained to the end",
    "lisa_n_layers": "all layers are trained",
    "qat": "weights are not quantized while training",
    "use_eaft": "the loss is the cross-entropy of the completion",
    "default_system_message": "write it as pipeline.system",
}
"""Keys that change the result, and what the job does instead."""


def convert(draft: JobDraft, options: DataOptions) -> None:
    """Fills the draft. Raises ConfigError for a config that trains on no supervised text."""
    for key, reason in OTHER_TRAININGS.items():
        if draft.is_on(key):
            draft.refuse(reason, key)
    base_model = draft.get("base_model")
    if not isinstance(base_model, str):
        draft.refuse("expected a hub id or a folder", "base_model")
    draft.put("base_model", base_model, "base_model")
    refuse_prequantized(draft, base_model)
    _put_adapter(draft)
    excess = EXCESS.get(str(draft.get("excess_length_strategy", default="drop")), "drop")
    task_keys = put_max_length(draft, "sequence_len", None, excess)
    draft.account("too_long", "excess_length_strategy")
    has_template = put_tasks(draft, options, task_keys)
    convert_split(draft, "val_set_size", 0.0)
    _put_chat_template(draft, is_used=has_template)
    draft.put("pipeline.seed", draft.whole("seed", default=42), "seed")
    convert_duration(draft, "num_epochs", 1.0)
    convert_batch_size(draft, "micro_batch_size", 1)
    convert_optimizer(draft, "optimizer", DEFAULT_RATE)
    if draft.is_on("gradient_checkpointing"):
        draft.put("trainer.enable_gradient_checkpointing", True, "gradient_checkpointing")
    for key, message in CHANGED_KEYS.items():
        if draft.is_on(key):
            draft.change(key, message)
    _drop_the_rest(draft)


def _put_adapter(draft: JobDraft) -> None:
    kind = draft.get("adapter")
    bits = 4 if draft.is_on("load_in_4bit") or kind == "qlora" else 8 if draft.is_on("load_in_8bit") else None
    if kind in ("lora", "qlora"):
        keys = ("lora_target_modules",)
        target_all = draft.is_on("lora_target_linear") or not draft.is_on("lora_target_modules")
        put_lora(draft, "lora_r", DEFAULT_RANK, keys, target_all=target_all)
        draft.account("adapter.target_modules", "lora_target_linear")
    elif kind is not None and kind is not False:
        draft.refuse(f"{shorten(str(kind))} is not supported; write lora or qlora", "adapter")
    sources = [key for key in ("load_in_4bit", "load_in_8bit", "adapter") if draft.is_on(key)]
    put_quantization(draft, bits, *sources)
    draft.account("quantization", *(key for key in ("load_in_4bit", "load_in_8bit") if key not in sources))
    for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"):
        if "adapter" not in draft.config:
            draft.drop("without an adapter all weights are trained", key)


def _put_chat_template(draft: JobDraft, *, is_used: bool) -> None:
    name = str(draft.get("chat_template", default="tokenizer_default"))
    source: Any = draft.get("chat_template_jinja")
    if not is_used:
        draft.put("pipeline.chat_template", False, comment="as in axolotl, whose alpaca types write plain prompts")
        draft.drop("the data sets use no chat template", "chat_template", "chat_template_jinja")
        return
    if isinstance(source, str):
        found = None if "\n" in source or "{" in source else find_file(source, draft.path)
        if found is not None:
            draft.put("pipeline.chat_template", written_path(found), "chat_template_jinja")
            draft.account("pipeline.chat_template", "chat_template")
        else:
            draft.change("chat_template_jinja", "save it in a file and write pipeline.chat_template: FILE")
    if draft.has("chat_template") and "chat_template" not in draft.config["pipeline"]:
        if name.startswith("tokenizer_default"):
            draft.account("pipeline.chat_template", "chat_template")
        else:
            draft.change("chat_template", f"the model's own is used instead of axolotl's {shorten(name)}")
    if draft.section("chat_template_kwargs"):
        draft.put("pipeline.chat_template_kwargs", draft.get("chat_template_kwargs"), "chat_template_kwargs")


def _drop_the_rest(draft: JobDraft) -> None:
    draft.drop("it is taken from config.json", "model_type", "is_llama_derived_model", "is_mistral_derived_model")
    draft.drop("alfine executes no code from a model folder", "trust_remote_code")
    draft.drop(
        "alfine chooses attention and kernels itself",
        "flash_attention",
        "lora_mlp_kernel",
        "lora_qkv_kernel",
        "lora_o_kernel",
        "experts_implementation",
        "gptq_disable_exllama",
        "tiled_mlp",
    )
    draft.drop(
        "several GPUs are used with backend: {type: ray, trainer: {num_workers: 4}}",
        "expert_parallel_size",
        "use_ray",
        "ray_num_workers",
    )
    draft.drop(
        "steps with a NaN or infinite loss stop a training, see pipeline.max_nonfinite_steps",
        "loss_watchdog_threshold",
        "loss_watchdog_patience",
    )
    draft.drop("it only makes a choice of axolotl stricter", "strict")
    draft.drop("rows may be shorter", "min_sample_len")


IMPORTERS.register("axolotl", Importer("an axolotl", convert))
