"""Configs of other fine-tuning tools: the counterparts of their keys, and the tool that a config is written for."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

_KEY_ALIASES: dict[str, str] = {
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.r": "lora_r lora_rank rank",
    "adapter.target_modules": "lora_target lora_target_modules",
    "base_model": (
        "base_model_path checkpoint_dir model model_id model_name model_name_or_path model_path "
        "pretrained_model_name_or_path tokenizer_name tokenizer_name_or_path"
    ),
    "generation.max_new_tokens": "max_completion_length max_generated_tokens max_tokens",
    "pipeline.split.test": "test_size",
    "pipeline.split.validation": "val_set_size val_size validation_split",
    "pipeline.system": "system_prompt",
    "pipeline.tasks.NAME.completion": "output output_column response target",
    "pipeline.tasks.NAME.data": (
        "dataset dataset_name dataset_path datasets eval_dataset train_data train_dataset train_file"
    ),
    "pipeline.tasks.NAME.prompt": "instruction",
    "preprocessing.global_max_sequence_length": (
        "cutoff_len max_length max_seq_len max_seq_length seq_len sequence_len sequence_length"
    ),
    "trainer.batch_size": "batch micro_batch_size per_device_batch_size per_device_train_batch_size train_batch_size",
    "trainer.checkpoints_per_epoch": "evals_per_epoch saves_per_epoch",
    "trainer.early_stop": "early_stopping_patience",
    "trainer.enable_gradient_checkpointing": "enable_activation_checkpointing gradient_checkpointing",
    "trainer.epochs": "max_epochs num_epochs num_train_epochs",
    "trainer.gradient_accumulation_steps": "grad_accum_steps gradient_accumulation",
    "trainer.gradient_clipping.clipglobalnorm": "clip_grad_norm max_grad_norm max_norm",
    "trainer.learning_rate": "lr",
    "trainer.learning_rate_scheduler.decay": "lr_scheduler lr_scheduler_type",
    "trainer.learning_rate_scheduler.eta_min": "min_lr",
    "trainer.learning_rate_scheduler.warmup_fraction": "warmup_ratio",
    "trainer.optimizer.type": "optim",
    "trainer.should_shuffle": "shuffle",
    "trainer.steps_per_checkpoint": "save_steps",
    "trainer.train_steps": "max_steps",
}
"""Key of alfine → its names in other tools."""

_REPLACEMENTS: dict[str, str] = {
    "trainer: {optimizer: {type: adamw, betas: [0.9, 0.999]}}": "adam_beta1 adam_beta2",
    "trainer: {optimizer: {type: adamw, eps: 1e-8}}": "adam_epsilon",
    "quantization: {bits: 4, bnb_4bit_quant_type: nf4}": "bnb_4bit_quant_type",
    "backend: {type: ray, trainer: {num_workers: 4}}": "devices num_gpus",
    "quantization: {bits: 4, bnb_4bit_use_double_quant: true}": "double_quantization",
    "adapter: {type: lora, r: 16}": "finetuning_type lora lora_config peft peft_config use_lora use_peft",
    "trainer: {batch_size: auto, effective_batch_size: 32}": "global_batch_size",
    "trainer: {enable_gradient_checkpointing: false}": "disable_gradient_checkpointing no_gradient_checkpointing",
    "pipeline: {forgetting: distill}": "kd_ratio",
    "pipeline: {chat_template_kwargs: {enable_thinking: false}}": "enable_thinking",
    "pipeline: {max_reasoning_tokens: 1024}": "max_thinking_tokens thinking_budget",
    "quantization: {bits: 4}": "load_in_4bit quantization_bit quantize quantizer use_qlora",
    "quantization: {bits: 8}": "load_in_8bit",
    "adapter: {type: lora, target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}": (
        "lora_target_linear"
    ),
    "trainer: {learning_rate_scheduler: {decay: linear, warmup_fraction: 0.05}}": (
        "lr_warmup_steps num_warmup_steps warmup warmup_steps"
    ),
    "pipeline: {forgetting: {strategy: distill, distill: {teacher: OWNER/NAME, apply_to: task}}}": "teacher_model",
    "adapter: {type: lora, use_dora: true}": "use_dora",
    "adapter: {type: lora, use_rslora: true}": "use_rslora",
}
"""YAML for alfine → keys of other tools with the same meaning."""

_NO_COUNTERPART: dict[str, str] = {
    "embedding noise (NEFTune) is not supported: it would depend on the packing; remove it": (
        "neftune_alpha neftune_noise_alpha"
    ),
    "device and precision are chosen for the machine; remove it, or set pipeline.hardware.device or dtype": (
        "autocast bf16 cpu device device_map dtype float16 fp16 fp8* mixed_precision precision pure_bf16 tf32 "
        "torch_dtype"
    ),
    "alfine chooses attention and kernels itself; remove it": (
        "*_kernel activation_offloading attn_implementation compile cut_cross_entropy "
        "enable_activation_offloading flash_att* flash_optimum flex_att* gradient_checkpointing_kwargs liger* "
        "optimizer_in_bwd plugins sdp_attention sdpa* torch_compile* unsloth* use_cache "
        "use_gradient_checkpointing use_kernels use_liger* use_reentrant* xformers*"
    ),
    "a run folder contains its log and report; remove it": (
        "comet* include_tokens_per_second log_* logger* logging_* metric_logger mlflow* plot_loss profiler "
        "report_to swanlab* trackio* use_swanlab use_tensorboard wandb*"
    ),
    "a run is stored in runs/NAME, set by alfine run CONFIG --name NAME; remove it": (
        "experiment_name export_* hub_* logging_dir out_dir output_dir output_directory overwrite_output_dir "
        "push_dataset_to_hub push_to_hub* run_name save_dir"
    ),
    "several GPUs are used with backend: {type: ray, trainer: {num_workers: 4}}; remove it": (
        "context_parallel* ddp* deepspeed* dist_config distributed* dp_* fsdp* local_rank num_machines num_nodes "
        "num_processes pipeline_model_parallel_size sequence_parallel* tensor_parallel*"
    ),
    "sequences are packed without padding and attend only to themselves; remove it": (
        "eval_sample_packing group_by_length neat_packing packed packing pad_to_* padding padding_side "
        "sample_packing truncation"
    ),
    "the loss is computed on the completion only; remove it": (
        "assistant_only_loss completion_only_loss loss mask_prompt roles_to_train train_on_inputs train_on_prompt "
        "train_on_responses_only"
    ),
    "prompts are built from pipeline.tasks.NAME.prompt and the model's chat template; remove it": (
        "chat_template_* conversation_template default_system prompt_style prompt_template template"
    ),
    "run the same alfine command again to resume a run; remove it": (
        "auto_resume* checkpointer load_best_model_at_end resume* save_adapter_weights_only save_only_model "
        "save_safetensors save_strategy save_total_limit"
    ),
    "a job starts from an earlier run by pipeline.continue_from: runs/NAME; remove it": (
        "adapter_name_or_path lora_model_dir"
    ),
    "alfine trains on prompts and completions, not on preferences or rewards; remove it": (
        "beta dpo* grpo* kto* loss_type orpo* ppo* pref_* reward_* rl trl"
    ),
    "alfine fine-tunes on prompts and completions; remove it": "stage",
    "alfine run trains; remove it": "do_train",
    "validation runs every trainer.steps_per_checkpoint steps or checkpoints_per_epoch times; remove it": (
        "batch_size_val do_eval do_predict eval eval_batch_size eval_steps eval_strategy evaluation_strategy "
        "greater_is_better metric_for_best_model per_device_eval_batch_size predict_with_generate "
        "run_val_every_n_steps"
    ),
    "alfine reads and mixes the rows itself; remove it": (
        "collate_fn dataloader* dataset_dir dataset_kwargs dataset_num_proc dataset_prepared_path "
        "dataset_text_field mix_strategy num_workers overwrite_cache preprocessing_num_workers "
        "remove_unused_columns shuffle_merged_datasets skip_prepare_dataset streaming tokenized_path"
    ),
    "alfine reads every row; put fewer rows into the data file": "max_samples",
    "the tokenizer and its special tokens are taken from base_model; remove it": (
        "added_tokens* eot_tokens processor_type resize_* special_tokens stop_token_ids tokenizer tokenizer_* "
        "tokens use_fast_tokenizer"
    ),
    "embedding noise would depend on the packing; remove it": "neftune*",
    "under an adapter only the adapter is trained; remove it": "lora_modules_to_save modules_to_save",
}
"""Reason why alfine has no counterpart → keys of other tools. `*` matches any characters."""

KEY_ALIASES, REPLACEMENTS, NO_COUNTERPART = (
    {key: target for target, keys in table.items() for key in keys.split()}
    for table in (_KEY_ALIASES, _REPLACEMENTS, _NO_COUNTERPART)
)
"""The same tables by key of the other tool."""

ON_BY_DEFAULT = {"enable_thinking"}
"""Keys of other tools whose value false changes what happens without them."""

_TYPICAL_KEYS: dict[str, str] = {
    "an axolotl": (
        "sequence_len micro_batch_size sample_packing val_set_size saves_per_epoch evals_per_epoch "
        "dataset_prepared_path lora_target_linear special_tokens wandb_project train_on_inputs "
        "pad_to_sequence_len num_epochs lora_model_dir strict chat_template pretraining_dataset test_datasets"
    ),
    "a LLaMA-Factory": (
        "cutoff_len finetuning_type stage template lora_target dataset dataset_dir plot_loss adapter_name_or_path "
        "infer_backend export_dir quantization_bit quantization_method train_dataset kernel_config dist_config "
        "sample_backend quant_config model_class val_size lora_rank image_max_pixels pref_beta neat_packing"
    ),
    "a torchtune": (
        "checkpointer metric_logger log_every_n_steps enable_activation_checkpointing max_steps_per_epoch "
        "log_peak_memory_stats optimizer_in_bwd batch_size_val clip_grad_norm"
    ),
    "an accelerate": (
        "compute_environment distributed_type machine_rank main_training_function num_machines num_processes "
        "mixed_precision downcast_bf16 same_network use_cpu rdzv_backend"
    ),
    "a litgpt": (
        "checkpoint_dir out_dir precision devices num_nodes lora_r lora_query lora_key lora_value logger_name "
        "train eval data"
    ),
    "an mlx-lm": (
        "adapter_path lora_parameters iters num_layers fine_tune_type steps_per_report steps_per_eval val_batches"
    ),
    "an H2O LLM Studio": (
        "architecture augmentation environment experiment_name llm_backbone problem_type output_directory"
    ),
    "an unsloth": (
        "max_seq_length load_in_4bit use_gradient_checkpointing random_state use_rslora finetune_language_layers "
        "finetune_vision_layers train_on_completions lora_alpha lora_dropout"
    ),
    "a TRL or Hugging Face": (
        "per_device_train_batch_size num_train_epochs dataset_name logging_steps save_steps lr_scheduler_type "
        "report_to torch_dtype use_peft model_name_or_path output_dir gradient_checkpointing dataset_train_split "
        "push_to_hub do_train overwrite_cache overwrite_output_dir preprocessing_num_workers warmup_ratio max_steps"
    ),
    "an Oumi": "model data training peft fsdp",
}
"""Tool → keys at the top level of its configs. Two of them identify the tool in a config without `pipeline:`."""
LUDWIG = "a Ludwig"
IMPORTABLE = (LUDWIG, "a LLaMA-Factory", "an axolotl")
"""Tools whose configs `alfine import` reads."""
_TRAINER_DIALECTS = {"a LLaMA-Factory": "a TRL or Hugging Face"}
"""Tools whose configs may also have all keys of another one, which are no reason to take it for that."""


def detect_tool(config: Mapping[str, Any]) -> str | None:
    """The tool that a config is written for, as in "an axolotl"; None if it may be one of alfine's."""
    if "pipeline" in config:
        return None
    if any(isinstance(value, Mapping) and "_component_" in value for value in config.values()):
        return "a torchtune"
    if "input_features" in config or "output_features" in config:
        return LUDWIG
    if tool := _tool_of_sections(config):
        return tool
    counts = {tool: len(set(keys.split()) & set(config)) for tool, keys in _TYPICAL_KEYS.items()}
    for tool, other in _TRAINER_DIALECTS.items():
        if counts[tool] >= 2:
            counts[tool] += counts[other]
    likeliest = max(counts, key=lambda tool: counts[tool])
    return likeliest if counts[likeliest] >= 2 else None


def _tool_of_sections(config: Mapping[str, Any]) -> str | None:
    """The tool whose sections a config has, however few keys it has besides."""
    datasets, peft = config.get("datasets"), config.get("peft_config")
    if "base_model" in config and isinstance(datasets, list) and any(map(_has_path, datasets)):
        return "an axolotl"
    if isinstance(config.get("model"), str) and isinstance(peft, Mapping) and "name" in peft:
        return "a LLaMA-Factory"
    return None


def _has_path(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "path" in entry


def no_counterpart_reason(key: str) -> str | None:
    """The reason why alfine has no counterpart of another tool's key; None if the key is not known."""
    patterns = (reason for pattern, reason in NO_COUNTERPART.items() if "*" in pattern and fnmatchcase(key, pattern))
    return NO_COUNTERPART.get(key) or next(patterns, None)
