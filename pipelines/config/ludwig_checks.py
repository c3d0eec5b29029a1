"""Checks the Ludwig part of a config against a snapshot of Ludwig's schema, without importing Ludwig.

Ludwig ignores misspelt keys and accepts `learning_rate: fast`. Here every key is either known to Ludwig and has an
effect, or is an error with the reason (see `ludwig_unsupported`).
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_unsupported import (
    REQUIRED_KEY,
    REQUIRED_VALUE,
    SCHEMA_OVERRIDES,
    UNSUPPORTED_VALUES,
    find_rule,
    unsupported,
)
from pipelines.config.messages import KeyPath, closest_names, did_you_mean, dotted, format_number, wrong_type
from pipelines.config.optimizer_checks import trust_ratio_conflicts
from pipelines.config.schema import SchemaNode, ludwig_fields
from pipelines.config.trainer_checks import trainer_conflicts
from pipelines.config.yaml_source import Document
from pipelines.errors import Problem


def check_ludwig_config(config: Mapping[str, Any], document: Document, hints: KeyHints) -> list[Problem]:
    """All problems of the Ludwig part of a config."""
    return [document.problem(message, *path) for message, path in ludwig_faults(config, document, hints)]


def ludwig_faults(config: Mapping[str, Any], document: Document, hints: KeyHints) -> list[tuple[str, KeyPath]]:
    """The message and the key of every problem of the Ludwig part of a config."""
    checker = _SchemaChecker(document, hints)
    checker.check_node({"types": ["mapping"], "fields": ludwig_fields()}, config, ())
    return [*checker.faults, *_section_conflicts(config)]


class _SchemaChecker:
    """Compares values with the nodes of the schema and collects the problems."""

    def __init__(self, document: Document, hints: KeyHints) -> None:
        self.document = document
        self.hints = hints
        self.faults: list[tuple[str, KeyPath]] = []

    def report(self, message: str, *path: str | int) -> None:
        self.faults.append((message, path))

    def check_node(self, node: SchemaNode, value: Any, path: KeyPath) -> None:
        name = dotted(path)
        if path in self.document.invalid_paths:
            return
        if refusal := unsupported(name):
            self.report(f"{name} {refusal.consequence}: {refusal.reason}", *path)
            return
        node = find_rule(SCHEMA_OVERRIDES, name) or node
        if path == ("backend",) and value in ("local", "ray"):
            return
        if isinstance(value, str | bool) and (reason := UNSUPPORTED_VALUES.get((name, value))):
            self.report(f"{name}: {_yaml_text(value)} is not supported: {reason}", *path)
        elif "enum" in node:
            self.check_enum(node["enum"], value, path)
        elif "types" in node and not (isinstance(value, str) and value == node.get("word")):
            self.check_typed(node, value, path)

    def check_typed(self, node: SchemaNode, value: Any, path: KeyPath) -> None:
        kind, accepted = _schema_type(value), node["types"]
        is_integral = "integer" in accepted and isinstance(value, float) and value.is_integer()
        if not (kind in accepted or (kind == "integer" and "number" in accepted) or is_integral):
            self.check_type(node, value, path)
        elif kind == "mapping" and "variants" in node:
            self.check_variant(node["variants"], value, path)
        elif kind == "mapping" and "fields" in node:
            self.check_fields(node["fields"], value, path)
        elif kind == "list":
            self.check_list(node, value, path)
        elif kind in ("integer", "number"):
            self.check_bounds(node, value, path)
        elif kind == "text" and node.get("nonempty") and not value.strip():
            self.report(f"{dotted(path)} is empty", *path)

    def check_list(self, node: SchemaNode, value: list[Any], path: KeyPath) -> None:
        if not value and node.get("nonempty"):
            self.report(f"{dotted(path)} is empty; remove it, or add values", *path)
        if len(value) != node.get("length", len(value)):
            self.report(f"{dotted(path)}: expected {node['length']} values, found {len(value)}", *path)
        for index, item in enumerate(value):
            self.check_node(node.get("items", {}), item, (*path, index))

    def check_fields(self, fields: Mapping[str, SchemaNode], section: Mapping[str, Any], path: KeyPath) -> None:
        for key, value in section.items():
            if key not in fields:
                self.report(self.hints.unknown_key((*path, key), value), *path, key)
                continue
            num_faults = len(self.faults)
            self.check_node(fields[key], value, (*path, key))
            if len(self.faults) == num_faults:
                self.check_has_effect(section, key, (*path, key))

    def supported_values(self, values: Iterable[Any], name: str) -> list[Any]:
        return [value for value in values if (name, value) not in UNSUPPORTED_VALUES]

    def check_variant(self, variants: Mapping[str, Any], section: Mapping[str, Any], path: KeyPath) -> None:
        """Checks a section whose keys depend on its `type`."""
        name = dotted(path)
        kind = section.get("type")
        supported = self.supported_values(variants, f"{name}.type")
        if kind is None:
            default = "adamw" if "adamw" in supported else supported[0]
            others = ", ".join(other for other in supported if other != default)
            self.report(f"{name}.type is missing: write type: {default}, or {others}", *path)
            return
        if not isinstance(kind, str) or kind not in variants:
            self.check_enum(list(variants), kind, (*path, "type"))
            return
        fields = dict(variants[kind])
        for key in [key for key in section if key not in fields]:
            owners = [other for other in supported if key in variants[other]]
            is_similar = closest_names(key, self.hints.accepted_keys(path))
            if owners and not unsupported(dotted((*path, key))) and not is_similar:
                types = f"type: {owners[0]}" if len(owners) == 1 else f"a type that has it ({', '.join(owners)})"
                self.report(f"{dotted((*path, key))}: {kind} has no such key; remove it, or write {types}", *path, key)
                fields[key] = {}  # so that it is reported only once
        self.check_fields(fields, section, path)

    def check_enum(self, allowed: list[Any], value: Any, path: KeyPath) -> None:
        if any(value == choice and _schema_type(value) == _schema_type(choice) for choice in allowed):
            return
        supported = self.supported_values(allowed, dotted(path))
        choices = [choice if isinstance(choice, str) else json.dumps(choice) for choice in supported]
        closest = did_you_mean(value, choices) if isinstance(value, str) else None
        if isinstance(value, str) and value.lower() == "none" and None in allowed:
            closest = "null"
        description = self.document.describe_value(value, *path)
        if closest:
            self.report(f"{dotted(path)}: found {description}; did you mean {closest}?", *path)
        else:
            expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
            self.report(f"{dotted(path)}: expected {expected}, found {description}", *path)

    def check_type(self, node: SchemaNode, value: Any, path: KeyPath) -> None:
        """Reports a value of the wrong type."""
        message = wrong_type(node["types"], value, path, self.document.raw_text(*path))
        if "variants" in node and isinstance(value, str):
            separator = ", or" if message.endswith("write null for none") else "; write"
            message += f"{separator} {self.as_section(value, node['variants'], path)}"
        self.report(message, *path)

    def as_section(self, value: str, variants: Mapping[str, Any], path: KeyPath) -> str:
        """The section that is meant by a word: `adapter: {type: lora}` for `adapter: lora`."""
        if path == ("adapter",) and value.lower() == "qlora":
            return "adapter: {type: lora} and quantization: {bits: 4}"
        supported = self.supported_values(variants, f"{dotted(path)}.type")
        default = "adamw" if "adamw" in supported else supported[0]
        return f"{path[-1]}: {{type: {(closest_names(value, supported) or [default])[0]}}}"

    def check_bounds(self, node: SchemaNode, value: float, path: KeyPath) -> None:
        for bound, words, is_within in (
            ("min", "at least", operator.ge),
            ("above", "greater than", operator.gt),
            ("max", "at most", operator.le),
            ("below", "less than", operator.lt),
        ):
            if bound in node and not is_within(value, node[bound]):
                limit, description = format_number(node[bound]), self.document.describe_value(value, *path)
                self.report(f"{dotted(path)} must be {words} {limit}, found {description}", *path)

    def check_has_effect(self, section: Mapping[str, Any], key: str, path: KeyPath) -> None:
        """Reports a key without effect because another key of its section is missing or has another value."""
        name = dotted(path)
        required = find_rule(REQUIRED_KEY, name)
        if required and section[key] is not None and not section.get(required):
            self.report(f"{name} has no effect without {required}; remove it, or add {required}", *path)
            return
        rule = find_rule(REQUIRED_VALUE, name)
        if rule is None or section[key] is None:
            return
        if name == "generation.temperature" and section[key] == 0:
            return  # what other tools write for do_sample: false
        neighbor, default, values = rule
        if (actual := section.get(neighbor, default)) not in values:
            required = f"{values[0]} or more" if isinstance(values, range) else " or ".join(map(_yaml_text, values))
            state = f"it is {'not set' if actual is None else _yaml_text(actual)}"
            message = f"{name} has no effect unless {neighbor} is {required} ({state}); remove it, or change {neighbor}"
            self.report(message, *path)


def _section_conflicts(config: Mapping[str, Any]) -> Iterator[tuple[str, KeyPath]]:
    """Messages, with their keys, on combinations of keys and sections."""
    trainer, adapter, quantization, generation = (
        section if isinstance(section := config.get(name), Mapping) else {}
        for name in ("trainer", "adapter", "quantization", "generation")
    )
    has_adapter = config.get("adapter") is not None
    yield from _quantization_conflicts(quantization, adapter, has_adapter)
    yield from _fsdp_conflicts(config.get("backend"), bool(quantization), has_adapter)
    yield from trainer_conflicts(trainer)
    yield from trust_ratio_conflicts(trainer, adapter if has_adapter else None)
    yield from _generation_conflicts(generation)
    if adapter.get("layer_replication"):
        message = "adapter.layer_replication changes the base model, so the tuned model has no base to be compared with"
        yield f"{message}; remove it", ("adapter", "layer_replication")


def _quantization_conflicts(
    quantization: Mapping[str, Any], adapter: Mapping[str, Any], has_adapter: bool
) -> Iterator[tuple[str, KeyPath]]:
    if quantization and (not has_adapter or adapter.get("type", "lora") != "lora"):
        message = "quantization requires an adapter of type lora: 4-bit and 8-bit weights cannot be trained"
        yield message, ("quantization",)
    if quantization and (init := adapter.get("init_lora_weights")) in ("pissa", "olora"):
        message = f"adapter.init_lora_weights: {init} decomposes the base weights, which must not be quantized"
        yield f"{message}; write default", ("adapter", "init_lora_weights")


def _fsdp_conflicts(backend: Any, is_quantized: bool, has_adapter: bool) -> Iterator[tuple[str, KeyPath]]:
    workers = backend.get("trainer") if isinstance(backend, Mapping) else None
    if isinstance(workers, Mapping) and workers.get("fsdp") and (is_quantized or not has_adapter):
        required = "no quantization" if is_quantized else "an adapter: it shards only the frozen weights"
        yield f"backend.trainer.fsdp requires {required}", ("backend", "trainer", "fsdp")


def _generation_conflicts(generation: Mapping[str, Any]) -> Iterator[tuple[str, KeyPath]]:
    if generation.get("do_sample") is True and generation.get("temperature") == 0:
        message = "generation.temperature must be greater than 0 for sampling; otherwise write do_sample: false"
        yield message, ("generation", "temperature")
    if generation.get("use_cache") is False and (generation.get("num_beams") or 1) != 1:
        message = "generation.use_cache: false is not supported with num_beams; remove it"
        yield message, ("generation", "use_cache")


def _schema_type(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return kinds.get(type(value), "null")


def _yaml_text(value: Any) -> str:
    """A scalar as YAML text."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
