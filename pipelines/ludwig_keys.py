"""Checks the Ludwig part of a config against a snapshot of Ludwig's schema, without importing Ludwig.

Ludwig drops a misspelt key in silence and takes `learning_rate: fast`. Here every key is either known to Ludwig and
reaches it, or is refused with the reason: alfine reads, tokenises, mixes and batches the rows itself, so some of
Ludwig's keys would change nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import Problem
from pipelines.yaml_lines import Document
from pipelines.yaml_wording import KeyPath, did_you_mean, dotted, unknown_key, wrong_type

FEATURES = "alfine writes this from pipeline.tasks; leave it out"
BATCHES = "the batch size stays as set; write batch_size and gradient_accumulation_steps"
VALIDATION = "training watches the loss on the completions of the validation rows; leave it out"
BALANCING = "it weighs Ludwig's output features; weigh tasks by pipeline.tasks.NAME.weight and pipeline.mix"
ENCODERS = "it concerns Ludwig's encoders, which a language model has not; leave it out"
BEAMS = "this decoding is no longer in transformers; use num_beams, or do_sample with temperature and top_p"

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
    "preprocessing.split": "alfine splits the rows itself; write pipeline.split, or give the rows a split column",
    "adapter.pretrained_adapter_weights": "Ludwig loads such an adapter frozen, and nothing would be trained",
    "adapter.postprocessor": "base and tuned model are compared with the adapter apart; merge it afterwards with peft",
    "adapter.eva_config": "Ludwig does not run the pass over the data that EVA needs",
    "trainer.validation_*": VALIDATION,
    "trainer.evaluate_training_set": "the training loss of each step is kept anyway; leave it out",
    "trainer.skip_all_evaluation": "the best checkpoint is chosen by the validation loss; leave it out",
    "trainer.eval_steps": "every validation row is evaluated; make pipeline.split.validation smaller instead",
    "trainer.enable_profiling": "alfine has no profiler; leave it out",
    "trainer.profiler": "alfine has no profiler; leave it out",
    "trainer.effective_batch_size": "it is batch_size × gradient_accumulation_steps; write those two",
    "trainer.max_batch_size": BATCHES,
    "trainer.increase_batch_size_*": BATCHES,
    "trainer.bucketing_field": "alfine builds the batches itself; leave it out",
    "trainer.base_learning_rate": "write learning_rate",
    "trainer.regularization_*": "write trainer.optimizer.weight_decay, with type adamw",
    "trainer.use_mixed_precision": "the precision is chosen by the hardware (bf16 where it has it); leave it out",
    "trainer.compile": "batches change their shape with every step, and compiling would slow training; leave it out",
    "trainer.loss_balancing*": BALANCING,
    "trainer.contrastive_pretrain_*": ENCODERS,
    "trainer.modality_dropout": ENCODERS,
    "trainer.model_soup*": "the checkpoint with the best validation loss is kept; leave it out",
    "trainer.learning_rate_scheduler.reduce_eval_metric": "it is the loss; leave it out",
    "trainer.optimizer.lr": "write trainer.learning_rate",
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

REFUSED_VALUES: dict[tuple[str, Any], str] = {
    ("trainer.batch_size", "auto"): "nothing is tuned by itself; write a number, such as 8",
    ("trainer.eval_batch_size", "auto"): "nothing is tuned by itself; write a number, such as 8",
    ("trainer.learning_rate", "auto"): "nothing is tuned by itself; write a number, such as 0.0002",
    ("trainer.gradient_accumulation_steps", "auto"): "nothing is tuned by itself; write a number, or leave it out for 1",
    ("trainer.type", "none"): "with none nothing is trained; write finetune, or leave it out",
    ("trainer.optimizer.type", "lbfgs"): "it repeats each step's rows, which alfine's trainer does not; write adamw",
    ("adapter.init_lora_weights", "eva"): "Ludwig does not run the pass over the data that EVA needs; write pissa or default",
    ("adapter.init_lora_weights", "corda"): "Ludwig does not run the pass that CorDA needs; write pissa or default",
    ("quantization.backend", "torchao"): "it rewrites the saved weights; write bitsandbytes, or leave it out",
}

NARROWED: dict[str, dict[str, Any]] = {
    "backend": {"types": ["mapping"], "fields": {"type": {"enum": ["local"]}}},
    "base_model": {"types": ["text"], "nonempty": True},
    "trainer.learning_rate": {"types": ["number"], "above": 0, "max": 1},
    "trainer.batch_size": {"types": ["integer"], "min": 1},
    "trainer.gradient_accumulation_steps": {"types": ["integer"], "min": 1},
    "trainer.eval_batch_size": {"types": ["integer", "null"], "min": 1},
    "trainer.gradient_clipping.*": {"types": ["number", "null"], "min": 0},
    "trainer.learning_rate_scheduler.warmup_fraction": {"types": ["number"], "min": 0, "max": 1},
    "trainer.learning_rate_scheduler.reduce_eval_split": {"enum": ["training", "validation"]},
    "adapter.*dropout": {"types": ["number"], "min": 0, "below": 1},
    "generation.max_new_tokens": {"types": ["integer"], "min": 1},
    "generation.early_stopping": {"enum": [True, False, "never", None]},
    "generation.repetition_penalty": {"types": ["number", "null"], "above": 0},
}
"""What Ludwig's schema leaves open, although only this makes sense."""

_DECAY, _WARMUP = "decay", ["linear", "exponential", "cosine", "inverse_sqrt", "polynomial", None]
ONLY_WITH: dict[str, tuple[str, Any, list[Any]]] = {
    "trainer.learning_rate_scheduler.decay_rate": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.decay_steps": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.staircase": (_DECAY, None, ["exponential"]),
    "trainer.learning_rate_scheduler.t_*": (_DECAY, None, ["cosine"]),
    "trainer.learning_rate_scheduler.eta_min": (_DECAY, None, ["cosine"]),
    "trainer.learning_rate_scheduler.max_lr": (_DECAY, None, ["one_cycle"]),
    "trainer.learning_rate_scheduler.pct_start": (_DECAY, None, ["one_cycle"]),
    "trainer.learning_rate_scheduler.*div_factor": (_DECAY, None, ["one_cycle"]),
    "trainer.learning_rate_scheduler.inverse_sqrt_*": (_DECAY, None, ["inverse_sqrt"]),
    "trainer.learning_rate_scheduler.polynomial_*": (_DECAY, None, ["polynomial"]),
    "trainer.learning_rate_scheduler.wsd_*": (_DECAY, None, ["wsd"]),
    "trainer.learning_rate_scheduler.warmup_*": (_DECAY, None, _WARMUP),
    "adapter.loftq_config": ("init_lora_weights", "default", ["loftq"]),
    "quantization.bnb_4bit_use_double_quant": ("bits", 4, [4]),
    "quantization.bnb_4bit_quant_type": ("bits", 4, [4]),
    "quantization.llm_int8_*": ("bits", 4, [8]),
}
"""Keys that do something only where a neighbour has one of these values: key → (neighbour, its default, values)."""


@cache
def schema() -> dict[str, Any]:
    """The snapshot's fields; see pipelines/engine/schema.py for their form."""
    text = Path(__file__).with_name("ludwig_schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["fields"])


@cache
def homes() -> dict[str, str]:
    """Section of each key one level down, for a key that stands in the wrong one: `epochs` → `trainer`."""
    found: dict[str, str] = {name: "the top level" for name in schema()}
    for section in ("generation", "model_parameters", "preprocessing", "quantization", "adapter", "trainer"):
        node = schema()[section]
        found |= dict.fromkeys(node.get("fields") or node["variants"]["lora"], section)
    return found


def check(config: Mapping[str, Any], document: Document, known_elsewhere: Mapping[str, str]) -> list[Problem]:
    """Every problem of the Ludwig part. `known_elsewhere`: keys of `pipeline:`, and where they belong."""
    checker = _Checker(document, {**homes(), **known_elsewhere})
    checker.walk({"types": ["mapping"], "fields": schema()}, config, ())
    checker.across(config)
    return checker.problems


class _Checker:
    def __init__(self, document: Document, homes: Mapping[str, str]) -> None:
        self.document = document
        self.homes = homes
        self.problems: list[Problem] = []

    def report(self, message: str, *path: str | int) -> None:
        self.problems.append(self.document.problem(message, *path))

    def walk(self, node: Mapping[str, Any], value: Any, path: KeyPath) -> None:
        name = dotted(path)
        if reason := _match(REFUSED, name):
            return self.report(f"{name} would have no effect: {reason}", *path)
        node = _match(NARROWED, name) or node
        if path == ("backend",) and value == "local":
            return None
        if isinstance(value, str) and (reason := REFUSED_VALUES.get((name, value))):
            return self.report(f"{name}: {value} is not possible: {reason}", *path)
        if "enum" in node:
            return self.enum(node["enum"], value, path)
        kind = _kind(value)
        accepted = node.get("types")
        if accepted is None:
            return None
        if not (kind in accepted or (kind == "integer" and "number" in accepted) or _whole(value, accepted)):
            return self.wrong_type(node, value, path)
        if kind == "mapping" and "variants" in node:
            self.variant(node["variants"], value, path)
        elif kind == "mapping" and "fields" in node:
            self.fields(node["fields"], value, path)
        elif kind == "list":
            if len(value) != node.get("length", len(value)):
                self.report(f"{name}: expected {node['length']} values, found {len(value)}", *path)
            for position, item in enumerate(value):
                self.walk(node.get("items", {}), item, (*path, position))
        elif kind in ("integer", "number"):
            self.bounds(node, value, path)
        elif kind == "text" and node.get("nonempty") and not value.strip():
            self.report(f"{name} is empty", *path)
        return None

    def fields(self, fields: Mapping[str, Any], section: Mapping[str, Any], path: KeyPath) -> None:
        for key, value in section.items():
            if key in fields:
                self.walk(fields[key], value, (*path, key))
                self.only_with(section, key, (*path, key))
            else:
                self.report(unknown_key((*path, key), fields, self.homes), *path, key)

    def variant(self, variants: Mapping[str, Any], section: Mapping[str, Any], path: KeyPath) -> None:
        name = dotted(path)
        kind = section.get("type")
        if kind is None:
            first = "adamw" if "adamw" in variants else next(iter(variants))
            return self.report(f"{name}.type is missing: write type: {first}, or {', '.join(variants)}", *path)
        if not isinstance(kind, str) or kind not in variants:
            return self.enum(list(variants), kind, (*path, "type"))
        fields = dict(variants[kind])
        for key in [key for key in section if key not in fields]:
            others = [other for other in variants if key in variants[other]]
            if others and not did_you_mean(key, fields):
                self.report(f"{dotted((*path, key))} is no key of {kind}; it is one of {', '.join(others)}", *path, key)
                fields[key] = {}
        return self.fields(fields, section, path)

    def enum(self, allowed: list[Any], value: Any, path: KeyPath) -> None:
        if any(value == one and _kind(value) == _kind(one) for one in allowed):
            return
        words = [json.dumps(one) if not isinstance(one, str) else one for one in allowed]
        expected = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
        near = did_you_mean(value, words) if isinstance(value, str) else None
        advice = f"; did you mean {near}?" if near else ""
        self.report(f"{dotted(path)}: expected {expected}, found {self.document.found(value, *path)}{advice}", *path)

    def wrong_type(self, node: Mapping[str, Any], value: Any, path: KeyPath) -> None:
        message = wrong_type(node["types"], value, path, self.document.written(*path))
        if "variants" in node and isinstance(value, str):
            message += f"; write {path[-1]}: {{type: {did_you_mean(value, node['variants']) or next(iter(node['variants']))}}}"
        self.report(message, *path)

    def bounds(self, node: Mapping[str, Any], value: float, path: KeyPath) -> None:
        for bound, words, holds in (
            ("min", "at least", lambda limit: value >= limit),
            ("above", "greater than", lambda limit: value > limit),
            ("max", "at most", lambda limit: value <= limit),
            ("below", "less than", lambda limit: value < limit),
        ):
            if bound in node and not holds(node[bound]):
                found = self.document.found(value, *path)
                self.report(f"{dotted(path)} must be {words} {node[bound]:g}, found {found}", *path)

    def only_with(self, section: Mapping[str, Any], key: str, path: KeyPath) -> None:
        if (rule := _match(ONLY_WITH, dotted(path))) is None or section[key] is None:
            return
        neighbour, default, values = rule
        if (actual := section.get(neighbour, default)) not in values:
            needed = " or ".join("null" if value is None else str(value) for value in values)
            self.report(f"{dotted(path)} has no effect unless {neighbour} is {needed} (it is {actual or 'not set'})", *path)

    def across(self, config: Mapping[str, Any]) -> None:
        """Rules that take two sections or keys."""
        trainer, adapter, quantization, generation, parameters = (
            section if isinstance(section := config.get(name), Mapping) else {}
            for name in ("trainer", "adapter", "quantization", "generation", "model_parameters")
        )
        if quantization and adapter.get("type") != "lora":
            self.report("quantization needs an adapter of type lora: 4-bit and 8-bit weights cannot be trained", "quantization")
        if trainer.get("steps_per_checkpoint") and trainer.get("checkpoints_per_epoch"):
            message = "trainer.checkpoints_per_epoch and trainer.steps_per_checkpoint exclude each other; keep one"
            self.report(message, "trainer", "checkpoints_per_epoch")
        if trainer.get("train_steps") is not None and "epochs" in trainer:
            self.report("trainer.epochs has no effect beside trainer.train_steps; keep one", "trainer", "epochs")
        if isinstance(regex := trainer.get("layers_to_freeze_regex"), str):
            try:
                re.compile(regex)
            except re.error as error:
                message = f"trainer.layers_to_freeze_regex is not a regular expression: {error}"
                self.report(message, "trainer", "layers_to_freeze_regex")
        if generation.get("do_sample") is True and generation.get("temperature") == 0:
            message = "generation.temperature must be above 0 where do_sample is true; for the likeliest answer write do_sample: false"
            self.report(message, "generation", "temperature")
        if adapter.get("init_lora_weights") == "loftq" and not adapter.get("loftq_config"):
            message = "adapter.init_lora_weights: loftq needs loftq_config: {loftq_bits: 4}"
            self.report(message, "adapter", "init_lora_weights")
        rope = parameters.get("rope_scaling")
        if isinstance(rope, Mapping) and not (rope.get("rope_type") and rope.get("factor")):
            message = "model_parameters.rope_scaling needs both rope_type and factor, as in {rope_type: linear, factor: 2.0}"
            self.report(message, "model_parameters", "rope_scaling")


def _match(table: Mapping[str, Any], name: str) -> Any:
    return table.get(name) or next((table[key] for key in table if "*" in key and fnmatchcase(name, key)), None)


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return kinds.get(type(value), "null")


def _whole(value: Any, accepted: list[str]) -> bool:
    return "integer" in accepted and isinstance(value, float) and value.is_integer()
