"""Checks the Ludwig part of a config against a snapshot of Ludwig's schema, without importing Ludwig.

Ludwig drops a misspelt key in silence and takes `learning_rate: fast`. Here every key is either known to
Ludwig and reaches it, or is refused with the reason (`ludwig_limits.py`).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.key_hints import Hints
from pipelines.config.ludwig_unsupported import NARROWED, NEEDS, ONLY_WITH, REFUSED_VALUES, lookup, refusal
from pipelines.config.messages import KeyPath, did_you_mean, dotted, near_names, number, wrong_type
from pipelines.config.trainer import contradictions
from pipelines.config.yaml_source import Document
from pipelines.errors import Problem


@cache
def schema() -> dict[str, Any]:
    """The snapshot's fields; see pipelines/config/ludwig_schema.py for their form."""
    text = Path(__file__).with_name("ludwig_schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["fields"])


def check(config: Mapping[str, Any], document: Document, hints: Hints) -> list[Problem]:
    """Every problem of the Ludwig part."""
    checker = _Checker(document, hints)
    checker.walk({"types": ["mapping"], "fields": schema()}, config, ())
    checker.across(config)
    return checker.problems


class _Checker:
    def __init__(self, document: Document, hints: Hints) -> None:
        self.document = document
        self.hints = hints
        self.problems: list[Problem] = []

    def report(self, message: str, *path: str | int) -> None:
        self.problems.append(self.document.problem(message, *path))

    def walk(self, node: Mapping[str, Any], value: Any, path: KeyPath) -> None:
        name = dotted(path)
        if path in self.document.unreadable:
            return None
        if refused := refusal(name):
            return self.report(f"{name} {refused[0]}: {refused[1]}", *path)
        node = lookup(NARROWED, name) or node
        if path == ("backend",) and value in ("local", "ray"):
            return None
        if isinstance(value, str | bool) and (reason := REFUSED_VALUES.get((name, value))):
            written = str(value).lower() if isinstance(value, bool) else value
            return self.report(f"{name}: {written} is not possible: {reason}", *path)
        if "enum" in node:
            return self.enum(node["enum"], value, path)
        kind = _kind(value)
        accepted = node.get("types")
        if accepted is None or (isinstance(value, str) and value == node.get("word")):
            return None
        if not (kind in accepted or (kind == "integer" and "number" in accepted) or _whole(value, accepted)):
            return self.wrong_type(node, value, path)
        if kind == "mapping" and "variants" in node:
            self.variant(node["variants"], value, path)
        elif kind == "mapping" and "fields" in node:
            self.fields(node["fields"], value, path)
        elif kind == "list":
            if not value and node.get("nonempty"):
                self.report(f"{name} is empty; take it out, or write what it is to hold", *path)
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
                before = len(self.problems)
                self.walk(fields[key], value, (*path, key))
                if len(self.problems) == before:
                    self.only_with(section, key, (*path, key))
            else:
                self.report(self.hints.unknown((*path, key), value), *path, key)

    def possible(self, values: Iterable[Any], name: str) -> list[Any]:
        """The values of a key that are not refused."""
        return [value for value in values if (name, value) not in REFUSED_VALUES]

    def variant(self, variants: Mapping[str, Any], section: Mapping[str, Any], path: KeyPath) -> None:
        name = dotted(path)
        kind = section.get("type")
        usable = self.possible(variants, f"{name}.type")
        if kind is None:
            first = "adamw" if "adamw" in usable else usable[0]
            rest = ", ".join(other for other in usable if other != first)
            return self.report(f"{name}.type is missing: write type: {first}, or {rest}", *path)
        if not isinstance(kind, str) or kind not in variants:
            return self.enum(list(variants), kind, (*path, "type"))
        fields = dict(variants[kind])
        for key in [key for key in section if key not in fields]:
            owners = [other for other in usable if key in variants[other]]
            if owners and not refusal(dotted((*path, key))) and not near_names(key, self.hints.usable(path)):
                others = f"type: {owners[0]}" if len(owners) == 1 else f"a type that has it ({', '.join(owners)})"
                message = f"{dotted((*path, key))}: {kind} has no such key; take it out, or write {others}"
                self.report(message, *path, key)
                fields[key] = {}  # said once
        return self.fields(fields, section, path)

    def enum(self, allowed: list[Any], value: Any, path: KeyPath) -> None:
        if any(value == one and _kind(value) == _kind(one) for one in allowed):
            return None
        usable = self.possible(allowed, dotted(path))
        words = [one if isinstance(one, str) else json.dumps(one) for one in usable]
        near = did_you_mean(value, words) if isinstance(value, str) else None
        if isinstance(value, str) and value.lower() == "none" and None in allowed:
            near = "null"
        found = f"found {self.document.found(value, *path)}"
        if near:
            return self.report(f"{dotted(path)}: {found}; did you mean {near}?", *path)
        expected = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
        return self.report(f"{dotted(path)}: expected {expected}, {found}", *path)

    def wrong_type(self, node: Mapping[str, Any], value: Any, path: KeyPath) -> None:
        message = wrong_type(node["types"], value, path, self.document.written(*path))
        if "variants" in node and isinstance(value, str):
            message += f"; write {self.as_section(value, node['variants'], path)}"
        self.report(message, *path)

    def as_section(self, value: str, variants: Mapping[str, Any], path: KeyPath) -> str:
        """`adapter: {type: lora}` for one who wrote `adapter: lora`."""
        if path == ("adapter",) and value.lower() == "qlora":
            return "adapter: {type: lora} and quantization: {bits: 4}"
        usable = self.possible(variants, f"{dotted(path)}.type")
        usual = "adamw" if "adamw" in usable else usable[0]
        return f"{path[-1]}: {{type: {(near_names(value, usable) or [usual])[0]}}}"

    def bounds(self, node: Mapping[str, Any], value: float, path: KeyPath) -> None:
        for bound, words, holds in (
            ("min", "at least", operator.ge),
            ("above", "greater than", operator.gt),
            ("max", "at most", operator.le),
            ("below", "less than", operator.lt),
        ):
            if bound in node and not holds(value, node[bound]):
                found = self.document.found(value, *path)
                self.report(f"{dotted(path)} must be {words} {number(node[bound])}, found {found}", *path)

    def only_with(self, section: Mapping[str, Any], key: str, path: KeyPath) -> None:
        needed = lookup(NEEDS, dotted(path))
        if needed and section[key] is not None and not section.get(needed):
            message = f"{dotted(path)} has no effect without {needed}; take it out, or write {needed} beside it"
            return self.report(message, *path)
        if (rule := lookup(ONLY_WITH, dotted(path))) is None or section[key] is None:
            return None
        if dotted(path) == "generation.temperature" and section[key] == 0:
            return None  # what others write for do_sample: false
        neighbour, default, values = rule
        if (actual := section.get(neighbour, default)) not in values:
            needed = f"{values[0]} or more" if isinstance(values, range) else " or ".join(map(_plain, values))
            found = f"it is {'not set' if actual is None else _plain(actual)}"
            message = f"{dotted(path)} has no effect unless {neighbour} is {needed} ({found}); take it out, or change {neighbour}"
            self.report(message, *path)
        return None

    def across(self, config: Mapping[str, Any]) -> None:
        """Rules that take two sections or keys."""
        trainer, adapter, quantization, generation = (
            section if isinstance(section := config.get(name), Mapping) else {}
            for name in ("trainer", "adapter", "quantization", "generation")
        )
        if quantization and (config.get("adapter") is None or adapter.get("type", "lora") != "lora"):
            message = "quantization needs an adapter of type lora: 4-bit and 8-bit weights cannot be trained"
            self.report(message, "quantization")
        workers = backend.get("trainer") if isinstance(backend := config.get("backend"), Mapping) else None
        if isinstance(workers, Mapping) and workers.get("fsdp") and (quantization or config.get("adapter") is None):
            needed = (
                "an adapter: it shares out the weights that are not trained" if not quantization else "no quantization"
            )
            self.report(f"backend.trainer.fsdp needs {needed}", "backend", "trainer", "fsdp")
        for message, path in contradictions(trainer):
            self.report(message, *path)
        if trainer.get("steps_per_checkpoint") and trainer.get("checkpoints_per_epoch"):
            message = "trainer.checkpoints_per_epoch and trainer.steps_per_checkpoint exclude each other; keep one"
            self.report(message, "trainer", "checkpoints_per_epoch")
        if trainer.get("batch_size") == "auto":
            if trainer.get("effective_batch_size") is None:
                message = (
                    "trainer.batch_size: auto also needs the rows of an optimiser step, as in effective_batch_size: 16"
                )
                self.report(message, "trainer", "batch_size")
            if "gradient_accumulation_steps" in trainer:
                message = "trainer.gradient_accumulation_steps has no effect beside batch_size: auto; leave it out"
                self.report(message, "trainer", "gradient_accumulation_steps")
        if trainer.get("train_steps") is not None and "epochs" in trainer:
            self.report("trainer.epochs has no effect beside trainer.train_steps; keep one", "trainer", "epochs")
        if isinstance(regex := trainer.get("layers_to_freeze_regex"), str):
            try:
                re.compile(regex)
            except re.error as error:
                message = f"trainer.layers_to_freeze_regex is not a regular expression ({error}); write \\( for a bracket as such"
                self.report(message, "trainer", "layers_to_freeze_regex")
        if generation.get("do_sample") is True and generation.get("temperature") == 0:
            message = "generation.temperature must be above 0 to sample; else write do_sample: false"
            self.report(message, "generation", "temperature")
        if quantization and (begins := adapter.get("init_lora_weights")) in ("pissa", "olora"):
            message = (
                f"adapter.init_lora_weights: {begins} takes a part out of the base's weights, not of quantized ones"
            )
            self.report(f"{message}; write default", "adapter", "init_lora_weights")
        if adapter.get("layer_replication"):
            message = (
                "adapter.layer_replication changes the base itself, so the tuned model has no base to be compared with"
            )
            self.report(f"{message}; take it out", "adapter", "layer_replication")
        if generation.get("use_cache") is False and (generation.get("num_beams") or 1) != 1:
            self.report(
                "generation.use_cache: false is not possible with num_beams; take it out", "generation", "use_cache"
            )


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return kinds.get(type(value), "null")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _whole(value: Any, accepted: list[str]) -> bool:
    return "integer" in accepted and isinstance(value, float) and value.is_integer()
