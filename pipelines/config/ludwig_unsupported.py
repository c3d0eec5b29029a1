"""What of Ludwig's schema alfine does not take, and why: the one place to look for a refused key.

alfine reads, tokenises, mixes and batches the rows itself, so some of Ludwig's keys would change nothing. A
key without effect is worse than an error: its writer believes in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

FEATURES = "alfine writes this from pipeline.tasks; leave it out"
BATCHES = "the batch size stays as set; write batch_size and gradient_accumulation_steps"
VALIDATION = "training watches the loss on the completions of the validation rows; leave it out"
BALANCING = "it weighs Ludwig's output features; weigh tasks by pipeline.tasks.NAME.weight and pipeline.mix"
ENCODERS = "it concerns Ludwig's encoders, which a language model has not; leave it out"
TOKENS = "training and completions take these tokens from the tokenizer and its chat template; leave it out"
BEAMS = "this decoding is no longer in transformers; use num_beams, or do_sample with temperature and top_p"

TORCHAO = "it belongs to torchao, which rewrites the saved weights; write bits: 4 or bits: 8"

REFUSED: dict[str, str] = {
    "input_features": FEATURES,
    "output_features": FEATURES,
    "prompt": "alfine writes this from pipeline.tasks; write pipeline.tasks.NAME.prompt",
    "defaults": "it holds defaults for Ludwig's features, which alfine writes itself; leave it out",
    "hyperopt": "a job is one training; start one run per setting: alfine run CONFIG --name NAME key=value",
    "adapters": "alfine trains one adapter; write it under adapter",
    "is_multimodal": "alfine trains on text alone; leave it out",
    "ludwig_version": "alfine brings its own Ludwig; leave it out",
    "preprocessing.sample_*": "alfine reads the rows itself; put fewer rows into the data file",
    "preprocessing.*sample_m*": "alfine reads the rows itself; weigh tasks by pipeline.tasks.NAME.weight",
    "preprocessing.split": "alfine splits the rows itself; write pipeline.split, or give them a split column",
    "adapter.pretrained_adapter_weights": "Ludwig loads such an adapter frozen, and nothing would be trained",
    "adapter.postprocessor": "base and tuned are compared with the adapter apart; merge it later with peft",
    "adapter.loftq_config": "alfine does not take LoftQ, see adapter.init_lora_weights",
    "adapter.eva_config": "Ludwig does not run the pass over the data that EVA needs",
    "trainer.validation_*": VALIDATION,
    "trainer.evaluate_training_set": "the training loss of each step is kept anyway; leave it out",
    "trainer.skip_all_evaluation": "the best checkpoint is chosen by the validation loss; leave it out",
    "trainer.eval_steps": "every validation row is evaluated; make pipeline.split.validation smaller instead",
    "trainer.enable_profiling": "alfine has no profiler; leave it out",
    "trainer.profiler": "alfine has no profiler; leave it out",
    "trainer.eval_batch_size": "validation rows are packed by their length; leave it out",
    "trainer.max_batch_size": BATCHES,
    "trainer.increase_batch_size_*": BATCHES,
    "trainer.bucketing_field": "alfine builds the batches itself; leave it out",
    "trainer.base_learning_rate": "write learning_rate",
    "trainer.regularization_*": "write trainer.optimizer.weight_decay, with type adamw",
    "trainer.use_mixed_precision": "the hardware decides it (bf16 where it can); leave it out",
    "trainer.compile": "batches change their shape with every step, which compiling slows; leave it out",
    "trainer.loss_balancing*": BALANCING,
    "trainer.contrastive_pretrain_*": ENCODERS,
    "trainer.modality_dropout": ENCODERS,
    "trainer.model_soup*": "the checkpoint with the best validation loss is kept; leave it out",
    "trainer.learning_rate_scaling": "workers share the rows of a step, so its rate is the same for any number; leave it out",
    "trainer.learning_rate_scheduler.reduce_eval_metric": "it is the loss; leave it out",
    "trainer.learning_rate_scheduler.max_lr": "one_cycle rises to trainer.learning_rate; write it there",
    "trainer.gradient_clipping.clipnorm": "Ludwig's clipnorm is clipglobalnorm once more; write clipglobalnorm",
    "trainer.optimizer.lr": "write trainer.learning_rate",
    "trainer.optimizer.block_wise": "bitsandbytes no longer has it; leave it out",
    "trainer.optimizer.percentile_clipping": "bitsandbytes no longer has it; write trainer.gradient_clipping",
    "model_parameters.rope_scaling": "the model is loaded as its folder says; set rope_parameters in its config.json",
    "quantization.mode": TORCHAO,
    "quantization.qat": TORCHAO,
    "generation.max_time": "a clock would decide where an answer ends, and no score could be had again; write max_new_tokens",
    "generation.min_length": "it counts the prompt's tokens as well; write min_new_tokens",
    "generation.forced_bos_token_id": "it acts where there is no prompt; leave it out",
    "generation.bos_token_id": TOKENS,
    "generation.eos_token_id": TOKENS,
    "generation.pad_token_id": TOKENS,
    "generation.max_length": "max_new_tokens stands above it; write max_new_tokens",
    "generation.num_beam_groups": BEAMS,
    "generation.diversity_penalty": BEAMS,
    "generation.penalty_alpha": BEAMS,
    "generation.force_words_ids": BEAMS,
    "generation.forced_decoder_ids": "transformers no longer knows it; leave it out",
    "generation.prompt_lookup_num_tokens": "it works for one row at a time, completions are made in batches",
    "generation.exponential_decay_length_penalty": "Ludwig 0.17.10 accepts no value for it; leave it out",
    "generation.sequence_bias": "Ludwig 0.17.10 accepts no value for it; leave it out",
}
"""Keys of Ludwig that would have no effect here, and what to write instead. `*` stands for any ending."""

NOT_POSSIBLE: dict[str, str] = {
    "model_parameters.neftune_noise_alpha": "its noise belongs to the length of a row (Jain et al. 2023), and Ludwig takes "
    "the length of the whole packed sequence, which memory decides; leave it out, or write adapter.dropout",
}
"""Keys of Ludwig that would act otherwise than they say, and why."""

REFUSED_VALUES: dict[tuple[str, Any], str] = {
    (
        "trust_remote_code",
        True,
    ): "alfine runs no code out of a model's folder; take the line out (models that transformers knows do not need it)",
    (
        "adapter.target_modules",
        "all-linear",
    ): "name the matrices, as in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]",
    ("trainer.learning_rate", "auto"): "nothing is tuned by itself; write a number, such as 0.0002",
    (
        "trainer.gradient_accumulation_steps",
        "auto",
    ): "nothing is tuned by itself; write a number, or leave it out for 1",
    ("trainer.type", "none"): "with none nothing is trained; write finetune, or leave it out",
    ("trainer.optimizer.type", "lbfgs"): "it repeats each step's rows, which alfine's trainer does not; write adamw",
    ("trainer.optimizer.type", "schedule_free_adamw"): "it needs a package that alfine does not bring; write adamw",
    (
        "trainer.optimizer.relative_step",
        True,
    ): "Adafactor would then choose its own rate, and trainer.learning_rate with its "
    "schedule would have no effect; leave it out",
    (
        "trainer.optimizer.warmup_init",
        True,
    ): "Adafactor warms up only with relative_step, which leaves trainer.learning_rate "
    "without effect; write trainer.learning_rate_scheduler.warmup_fraction",
    (
        "adapter.type",
        "adalora",
    ): "its ranks are shared out by a call after each step which Ludwig does not make, and Ludwig "
    "drops its target_modules; write lora",
    (
        "adapter.init_lora_weights",
        "loftq",
    ): "it replaces the base's weights by 4-bit approximations, so the tuned model would "
    "not be one of this base; write pissa or default, with quantization where memory is short",
    (
        "adapter.init_ia3_weights",
        False,
    ): "training would start from random scales in place of the base; take the line out",
    (
        "adapter.apply_GS",
        True,
    ): "made orthogonal, the reflections do not cancel at the start, so training would not start from "
    "the base; take the line out",
    (
        "adapter.init_lora_weights",
        "eva",
    ): "the pass over the data that EVA needs is not run here; write pissa or default",
    (
        "adapter.init_lora_weights",
        "corda",
    ): "the pass over the data that CorDA needs is not run here; write pissa or default",
    ("quantization.backend", "torchao"): "it rewrites the saved weights; write bitsandbytes, or leave it out",
}

_TOKEN_ID: dict[str, Any] = {"types": ["integer"], "min": 0}
_TOKEN_IDS: dict[str, Any] = {"types": ["list", "null"], "items": _TOKEN_ID}

NARROWED: dict[str, dict[str, Any]] = {
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
"""What Ludwig's schema leaves open, although only this makes sense."""

_BEAMS_ONLY = ("num_beams", 1, range(2, 2**31))
_SAMPLED = ("do_sample", False, [True])
_DECAY, _WARMUP = "decay", ["linear", "exponential", "cosine", "inverse_sqrt", "polynomial", None]
ONLY_WITH: dict[str, tuple[str, Any, Sequence[Any]]] = {
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
"""Keys that need certain values of a neighbour: key → (neighbour, its default, values)."""

NEEDS: dict[str, str] = {
    "trainer.learning_rate_scheduler.reduce_on_plateau_*": "reduce_on_plateau",
    "trainer.learning_rate_scheduler.reduce_eval_split": "reduce_on_plateau",
    "trainer.learning_rate_scheduler.t_mult": "t_0",
}
"""Keys that need a neighbour that is written and not 0: key → neighbour."""


def lookup(table: Mapping[str, Any], name: str) -> Any:
    """What a table says of a dotted key, by its name or by a pattern with `*`; None where nothing is said."""
    return table.get(name) or next((table[key] for key in table if "*" in key and fnmatchcase(name, key)), None)


def refusal(name: str) -> tuple[str, str] | None:
    """What would become of a dotted key that is not taken, and why; None where it is taken."""
    for table, fate in ((REFUSED, "would have no effect"), (NOT_POSSIBLE, "is not possible")):
        if reason := lookup(table, name):
            return fate, reason
    return None
