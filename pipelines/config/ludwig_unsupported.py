"""The keys and values of Ludwig's schema that alfine does not support, each with the reason.

alfine itself reads, tokenizes, mixes and batches the rows, so several of Ludwig's keys would have no effect. A key
without effect is an error, because its author expects it to work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

FEATURES = "alfine writes this from pipeline.tasks; remove it"
BATCHES = "the batch size is fixed; write batch_size and gradient_accumulation_steps"
VALIDATION = "the validation metric is the loss on the completions of the validation rows; remove it"
BALANCING = "it weights Ludwig's output features; set pipeline.tasks.NAME.weight and pipeline.mix"
ENCODERS = "it configures Ludwig's encoders, which a language model does not have; remove it"
TOKENS = "these tokens are taken from the tokenizer and its chat template; remove it"
BEAMS = "transformers no longer supports this decoding method; use num_beams, or do_sample with temperature and top_p"

TORCHAO = "it is an option of torchao, which changes the saved weights; write bits: 4 or bits: 8"

IGNORED_KEYS: dict[str, str] = {
    "input_features": FEATURES,
    "output_features": FEATURES,
    "prompt": "alfine writes this from pipeline.tasks; write pipeline.tasks.NAME.prompt",
    "defaults": "it sets defaults for Ludwig's features, which alfine writes itself; remove it",
    "hyperopt": "a config is one training run; start one run per setting: alfine run CONFIG --name NAME key=value",
    "adapters": "alfine trains one adapter; write it under adapter",
    "is_multimodal": "alfine trains only on text; remove it",
    "ludwig_version": "the version of Ludwig is a dependency of alfine; remove it",
    "preprocessing.sample_*": "alfine reads the rows itself; put fewer rows into the data file",
    "preprocessing.*sample_m*": "alfine reads the rows itself; set pipeline.tasks.NAME.weight",
    "preprocessing.split": "alfine splits the rows itself; write pipeline.split, or give them a split column",
    "adapter.pretrained_adapter_weights": "Ludwig loads such an adapter frozen, so nothing would be trained",
    "adapter.postprocessor": "base and tuned model are compared with an unmerged adapter; merge it later with peft",
    "adapter.loftq_config": "alfine does not support LoftQ, see adapter.init_lora_weights",
    "adapter.eva_config": "Ludwig does not compute the data statistics that EVA requires",
    "trainer.validation_*": VALIDATION,
    "trainer.evaluate_training_set": "the training loss of every step is recorded anyway; remove it",
    "trainer.skip_all_evaluation": "the best checkpoint is chosen by the validation loss; remove it",
    "trainer.eval_steps": "every validation row is evaluated; make pipeline.split.validation smaller instead",
    "trainer.enable_profiling": "alfine has no profiler; remove it",
    "trainer.profiler": "alfine has no profiler; remove it",
    "trainer.eval_batch_size": "validation batches are packed by length; remove it",
    "trainer.max_batch_size": BATCHES,
    "trainer.increase_batch_size_*": BATCHES,
    "trainer.bucketing_field": "alfine builds the batches itself; remove it",
    "trainer.base_learning_rate": "write learning_rate",
    "trainer.regularization_*": "write trainer.optimizer.weight_decay, with type adamw",
    "trainer.use_mixed_precision": "it is chosen for the machine; remove it, or set pipeline.hardware.dtype",
    "trainer.compile": "the shape of the batches changes with every step, so compiling is slower; remove it",
    "trainer.loss_balancing*": BALANCING,
    "trainer.contrastive_pretrain_*": ENCODERS,
    "trainer.modality_dropout": ENCODERS,
    "trainer.model_soup*": "the checkpoint with the best validation loss is kept; remove it",
    "trainer.learning_rate_scaling": "the effective batch size does not depend on the number of workers; remove it",
    "trainer.learning_rate_scheduler.reduce_eval_metric": "the metric is the loss; remove it",
    "trainer.learning_rate_scheduler.max_lr": "the maximum of one_cycle is trainer.learning_rate; set that",
    "trainer.gradient_clipping.clipnorm": "in Ludwig it means the same as clipglobalnorm; write clipglobalnorm",
    "trainer.optimizer.lr": "write trainer.learning_rate",
    "trainer.optimizer.block_wise": "bitsandbytes no longer supports it; remove it",
    "trainer.optimizer.percentile_clipping": "bitsandbytes no longer supports it; write trainer.gradient_clipping",
    "model_parameters.rope_scaling": "the model is loaded as its config.json says; set rope_parameters there",
    "quantization.mode": TORCHAO,
    "quantization.qat": TORCHAO,
    "generation.max_time": (
        "completions would depend on the speed of the machine, so scores could not be reproduced; write max_new_tokens"
    ),
    "generation.min_length": "it includes the tokens of the prompt; write min_new_tokens",
    "generation.forced_bos_token_id": "it applies only without a prompt; remove it",
    "generation.bos_token_id": TOKENS,
    "generation.eos_token_id": TOKENS,
    "generation.pad_token_id": TOKENS,
    "generation.max_length": "max_new_tokens overrides it; write max_new_tokens",
    "generation.num_beam_groups": BEAMS,
    "generation.diversity_penalty": BEAMS,
    "generation.penalty_alpha": BEAMS,
    "generation.force_words_ids": BEAMS,
    "generation.forced_decoder_ids": "transformers no longer supports it; remove it",
    "generation.prompt_lookup_num_tokens": (
        "it only works for single prompts, and completions are generated in batches; remove it"
    ),
    "generation.exponential_decay_length_penalty": "Ludwig 0.17.10 accepts no value for it; remove it",
    "generation.sequence_bias": "Ludwig 0.17.10 accepts no value for it; remove it",
}
"""Keys of Ludwig that would have no effect, and what to write instead. `*` matches any characters."""

UNSUPPORTED_KEYS: dict[str, str] = {
    "model_parameters.neftune_noise_alpha": (
        "the noise scales with the length of a sequence (Jain et al. 2023), and Ludwig uses the length of the packed "
        "batch, which depends on memory; remove it, or write adapter.dropout"
    ),
}
"""Keys of Ludwig that would not have the effect that their name promises."""

_UNSUPPORTED_VALUES: dict[str, dict[str | bool, str]] = {
    "trust_remote_code": {
        True: (
            "alfine executes no code from a model folder; remove it (models that are part of transformers do not "
            "need it)"
        ),
    },
    "adapter.target_modules": {
        "all-linear": "list the modules, as in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]",
    },
    "trainer.learning_rate": {
        "auto": "alfine does not choose it; write a number, such as 0.0002",
    },
    "trainer.gradient_accumulation_steps": {
        "auto": "alfine does not choose it; write a number, or remove it for 1",
    },
    "trainer.type": {
        "none": "none would train nothing; write finetune, or remove it",
    },
    "trainer.optimizer.type": {
        "lbfgs": "it evaluates the loss of a step several times, which the trainer does not support; write adamw",
        "schedule_free_adamw": "it requires a package that alfine does not depend on; write adamw",
        "lamb_8bit": "bitsandbytes computes the steps of Adam for it, without LAMB's trust ratio; write adamw_8bit",
        "lars_8bit": "bitsandbytes computes SGD with momentum for it, without LARS's trust ratio; write adamw_8bit",
    },
    "trainer.optimizer.relative_step": {
        True: (
            "Adafactor would then set its own learning rate, and trainer.learning_rate with its schedule would "
            "have no effect; remove it"
        ),
    },
    "trainer.optimizer.warmup_init": {
        True: (
            "Adafactor warms up only with relative_step, which ignores trainer.learning_rate; write "
            "trainer.learning_rate_scheduler.warmup_fraction"
        ),
    },
    "adapter.type": {
        "adalora": (
            "Ludwig does not make the call after every step that allocates its ranks, and ignores its "
            "target_modules; write lora"
        ),
    },
    "adapter.init_lora_weights": {
        "loftq": (
            "it replaces the base weights by 4-bit approximations, so the tuned model would belong to another "
            "base; write pissa or default, with quantization to save memory"
        ),
        "eva": "the data statistics that EVA requires are not computed; write pissa or default",
        "corda": "the data statistics that CorDA requires are not computed; write pissa or default",
    },
    "adapter.init_ia3_weights": {
        False: "training would start from random scales instead of the base model; remove it",
    },
    "adapter.apply_GS": {
        True: (
            "orthogonalized reflections do not cancel at the start, so training would not start from the base "
            "model; remove it"
        ),
    },
    "quantization.backend": {
        "torchao": "it changes the saved weights; write bitsandbytes, or remove it",
    },
}
UNSUPPORTED_VALUES: dict[tuple[str, str | bool], str] = {
    (key, value): reason for key, reasons in _UNSUPPORTED_VALUES.items() for value, reason in reasons.items()
}
"""Values of Ludwig's schema that alfine does not support: (dotted key, value) → the reason."""

_TOKEN_ID: dict[str, Any] = {"types": ["integer"], "min": 0}
_TOKEN_IDS: dict[str, Any] = {"types": ["list", "null"], "items": _TOKEN_ID}

SCHEMA_OVERRIDES: dict[str, dict[str, Any]] = {
    "backend": {
        "types": ["mapping"],
        "variants": {
            "local": {"type": {}},
            "ray": {
                "type": {},
                "trainer": {
                    "types": ["mapping"],
                    "fields": {
                        "num_workers": {"types": ["integer"], "min": 1},
                        "use_gpu": {"types": ["boolean"]},
                        "resources_per_worker": {
                            "types": ["mapping"],
                            "fields": {"CPU": {"types": ["number"], "min": 0}, "GPU": {"types": ["number"], "min": 0}},
                        },
                        "fsdp": {"enum": ["frozen", None]},
                        "max_failures": {"types": ["integer"], "min": 0},
                    },
                },
            },
        },
    },
    "base_model": {"types": ["text"], "nonempty": True},
    "trainer.learning_rate": {"types": ["number"], "above": 0, "max": 1},
    "trainer.batch_size": {"types": ["integer"], "min": 1, "word": "auto"},
    "trainer.effective_batch_size": {"types": ["integer"], "min": 1},
    "trainer.gradient_accumulation_steps": {"types": ["integer"], "min": 1},
    "trainer.gradient_clipping.*": {"types": ["number", "null"], "above": 0},
    "trainer.learning_rate_scheduler.warmup_fraction": {"types": ["number"], "min": 0, "below": 1},
    "trainer.learning_rate_scheduler.decay_rate": {"types": ["number"], "above": 0, "below": 1},
    "trainer.learning_rate_scheduler.reduce_on_plateau_rate": {"types": ["number"], "above": 0, "below": 1},
    "trainer.learning_rate_scheduler.pct_start": {"types": ["number"], "above": 0, "below": 1},
    "trainer.learning_rate_scheduler.*div_factor": {"types": ["number"], "min": 1},
    "trainer.learning_rate_scheduler.polynomial_power": {"types": ["number"], "above": 0},
    "trainer.learning_rate_scheduler.polynomial_end_lr": {"types": ["number"], "min": 0},
    "trainer.learning_rate_scheduler.reduce_eval_split": {"enum": ["training", "validation"]},
    "trainer.optimizer.betas": {"types": ["list"], "length": 2, "items": {"types": ["number"], "min": 0, "below": 1}},
    "adapter.*dropout": {"types": ["number"], "min": 0, "below": 1},
    "generation.max_new_tokens": {"types": ["integer"], "min": 1},
    "generation.early_stopping": {"enum": [True, False, "never", None]},
    "generation.*repetition_penalty": {"types": ["number", "null"], "above": 0},
    "generation.typical_p": {"types": ["number", "null"], "above": 0, "max": 1},
    "generation.bad_words_ids": {
        "types": ["list", "null"],
        "nonempty": True,
        "items": {**_TOKEN_IDS, "nonempty": True},
    },
    "generation.forced_eos_token_id": {
        "types": ["integer", "list", "null"],
        "min": 0,
        "nonempty": True,
        "items": _TOKEN_ID,
    },
    "generation.*suppress_tokens": _TOKEN_IDS,
}
"""Nodes that are stricter than those of Ludwig's schema."""

_BEAMS_ONLY = ("num_beams", 1, range(2, 2**31))
_SAMPLED = ("do_sample", False, [True])
_DECAY, _WARMUP = "decay", ["linear", "exponential", "cosine", "inverse_sqrt", "polynomial", None]
REQUIRED_VALUE: dict[str, tuple[str, Any, Sequence[Any]]] = {
    "trainer.learning_rate_scheduler.decay_rate": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.decay_steps": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.staircase": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.t_*": (_DECAY, None, ["cosine"]),
    "trainer.learning_rate_scheduler.eta_min": (_DECAY, None, ["cosine"]),
    "trainer.learning_rate_scheduler.pct_start": (_DECAY, None, ["one_cycle"]),
    "trainer.learning_rate_scheduler.*div_factor": (_DECAY, None, ["one_cycle"]),
    "trainer.learning_rate_scheduler.inverse_sqrt_*": (_DECAY, None, ["inverse_sqrt"]),
    "trainer.learning_rate_scheduler.polynomial_*": (_DECAY, None, ["polynomial"]),
    "trainer.learning_rate_scheduler.wsd_*": (_DECAY, None, ["wsd"]),
    "trainer.learning_rate_scheduler.warmup_*": (_DECAY, None, _WARMUP),
    "trainer.effective_batch_size": ("batch_size", 8, ["auto"]),
    "quantization.bnb_4bit_*": ("bits", 4, [4]),
    "quantization.llm_int8_*": ("bits", 4, [8]),
    "generation.temperature": _SAMPLED,
    "generation.top_*": _SAMPLED,
    "generation.typical_p": _SAMPLED,
    "generation.*_cutoff": _SAMPLED,
    "generation.renormalize_logits": _SAMPLED,
    "generation.length_penalty": _BEAMS_ONLY,
    "generation.early_stopping": _BEAMS_ONLY,
}
"""Keys that have no effect unless another key of their section has certain values: key → (other key, default,
values)."""

REQUIRED_KEY: dict[str, str] = {
    "trainer.learning_rate_scheduler.reduce_on_plateau_*": "reduce_on_plateau",
    "trainer.learning_rate_scheduler.reduce_eval_split": "reduce_on_plateau",
    "trainer.learning_rate_scheduler.t_mult": "t_0",
}
"""Keys that have no effect unless another key of their section is set and not 0."""


@dataclass(frozen=True)
class Refusal:
    """Why a key is not supported."""

    consequence: str
    """The predicate of a message about the key, such as `would have no effect`."""
    reason: str


def find_rule(table: Mapping[str, Any], name: str) -> Any:
    """The entry for a dotted key, by its name or by a pattern with `*`; None without one."""
    return table.get(name) or next((table[key] for key in table if "*" in key and fnmatchcase(name, key)), None)


def unsupported(name: str) -> Refusal | None:
    """Why a dotted key is not supported; None for a supported one."""
    if reason := find_rule(IGNORED_KEYS, name):
        return Refusal("would have no effect", reason)
    if reason := find_rule(UNSUPPORTED_KEYS, name):
        return Refusal("is not supported", reason)
    return None
