"""The JSON Schema of the section `pipeline:`, from its pydantic models and the registries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.config.forgetting import strategy_words
from pipelines.config.pipeline import PipelineSettings
from pipelines.config.retention_registry import retention_eval_kinds
from pipelines.config.task import RESERVED_VARIABLES
from pipelines.scoring.metric import METRICS

JsonSchema = dict[str, Any]

_NAME = "^[A-Za-z0-9_-]+$(?!\\n)"
_EXAMPLES: Mapping[str, list[Any]] = {
    "tasks": [{"sentiment": {"data": "data/sentiment.jsonl", "prompt": "{review}", "completion": "{label}"}}],
    "tasks.data": ["data/sentiment.jsonl", "data/*.csv", "hub:OWNER/NAME", {"train": "a.jsonl", "test": "b.jsonl"}],
    "tasks.prompt": ["Is this review positive or negative?\n{review}"],
    "tasks.completion": ["{label}"],
    "tasks.messages": ["messages"],
    "tasks.reasoning": ["{reasoning}"],
    "tasks.chat_template_kwargs": [{"enable_thinking": False}],
    "system": ["Answer briefly."],
    "report.sample_prompts": ["data/sample_prompts.jsonl"],
    "report.gates": [{"sentiment": {"min_gain": 5}}],
    "forgetting": ["auto", "none", "ewc+replay", {"strategy": "ewc", "eval_steps": 20}],
    "forgetting.strategy": ["auto", "none", "ewc+replay"],
    "forgetting.evals": ["bundled", "none", {"mine": {"kind": "text_nll", "data": "mine.jsonl"}}],
    "forgetting.max_regression": [{"passages": 0.1}],
    "continue_from": ["runs/first"],
}
"""Examples by key; the name of a task is left out."""


def pipeline_schema() -> JsonSchema:
    """Returns the schema of the section."""
    raw = PipelineSettings.model_json_schema()
    schema = _inlined(raw, raw["$defs"])
    properties = schema["properties"]
    properties["tasks"] = _named(properties["tasks"], minProperties=1)
    _extend_task(properties["tasks"]["additionalProperties"]["properties"])
    properties["chat_template_kwargs"]["propertyNames"] = _variable_name()
    properties["forgetting"] = _forgetting(properties["forgetting"])
    _add_examples(schema, "")
    return {**schema, "description": "The keys of alfine; everything else is a Ludwig config."}


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """The node with its references replaced, null as a type, and without titles and empty defaults.

    A description beside a reference is ignored in draft 7, so the definitions are inlined; none contains itself.
    """
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    result: JsonSchema = {}
    for key, value in node.items():
        if key in ("$defs", "title") or (key == "default" and (value is None or isinstance(value, dict))):
            continue
        if key == "properties":
            result[key] = {name: _inlined(child, definitions) for name, child in value.items()}
        elif key == "description":
            result[key] = re.sub(r"\bNone\b", "null", " ".join(value.split()))
        elif key in ("default", "enum"):
            result[key] = value
        else:
            result[key] = _inlined(value, definitions)
    return _with_null_as_type(result)


def _with_null_as_type(node: JsonSchema) -> JsonSchema:
    """`anyOf: [{type: string}, {type: null}]` as `type: [string, null]`, which editors show better."""
    options = node.get("anyOf", ())
    if len(options) != 2 or options[1] != {"type": "null"}:
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    value = options[0]
    if isinstance(value.get("type"), str):
        merged = {**value, **rest, "type": [value["type"], "null"]}
        return merged | ({"enum": [*value["enum"], None]} if "enum" in value else {})
    alternatives = value.get("oneOf") or value.get("anyOf")
    return {**rest, "anyOf": [*alternatives, {"type": "null"}]} if alternatives else node


def _named(node: JsonSchema, **keywords: Any) -> JsonSchema:
    """An object whose keys are names: pydantic writes their pattern in the syntax of Rust."""
    (entry,) = node["patternProperties"].values()
    rest = {key: value for key, value in node.items() if key != "patternProperties"}
    return {**rest, **keywords, "propertyNames": {"pattern": _NAME}, "additionalProperties": entry}


def _extend_task(task: dict[str, JsonSchema]) -> None:
    """Adds what the validators of a task check."""
    custom = {"type": "string", "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"}
    metric = {key: value for key, value in task["metric"].items() if key != "type"}
    task["metric"] = {**metric, "anyOf": [{"enum": list(METRICS)}, custom]}
    task["reasoning"] = {
        **{key: value for key, value in task["reasoning"].items() if key != "anyOf"},
        "type": ["string", "boolean", "null"],
        "pattern": r"\S",
    }
    task["chat_template_kwargs"]["propertyNames"] = _variable_name()


def _variable_name() -> JsonSchema:
    return {"pattern": r"^[^\W\d]\w*$", "not": {"enum": list(RESERVED_VARIABLES)}}


def _forgetting(section: JsonSchema) -> JsonSchema:
    """A strategy or a section. A strategy may be several, joined by +."""
    words = strategy_words()
    word = "(" + "|".join(words) + ")"
    several = {"type": "string", "pattern": rf"^\s*{word}(\s*\+\s*{word})*\s*$"}
    strategy = {"anyOf": [{"enum": words}, several]}
    properties = section["properties"]
    properties["strategy"] = {**_without(properties["strategy"], "type"), **strategy}
    evals = properties["evals"]
    named = _named(evals["oneOf"][1], minProperties=1)
    named["additionalProperties"] = _retention_eval()
    properties["evals"] = {**_without(evals, "oneOf"), "anyOf": [evals["oneOf"][0], named]}
    description = "Strategies against forgetting, and retention evals: a strategy, or a section."
    return {"description": description, "default": "auto", "anyOf": [*strategy["anyOf"], section]}


def _retention_eval() -> JsonSchema:
    """An eval, whose keys depend on its kind."""
    kinds = {}
    for kind, settings in retention_eval_kinds().items():
        raw = settings.model_json_schema()
        kinds[kind] = _inlined(raw, raw.get("$defs", {}))
    schema = {"type": "object", **keys_by("kind", kinds)}
    schema["properties"]["kind"]["description"] = "What is measured on the rows."
    return schema


def keys_by(key: str, variants: Mapping[str, JsonSchema]) -> JsonSchema:
    """The keywords of an object whose keys depend on the value of one of them.

    variants: value → the schema of such an object, with `properties` and possibly `required`.
    With if and then, the errors and the completions of an editor come from the variant that is written; with anyOf,
    from all of them.
    """
    return {
        "properties": {key: {"enum": list(variants)}},
        "required": [key],
        "allOf": [
            {
                "if": {"type": "object", "properties": {key: {"const": value}}, "required": [key]},
                "then": {
                    "properties": {**schema["properties"], key: {"const": value}},
                    "required": [key, *(name for name in schema.get("required", ()) if name != key)],
                    "additionalProperties": False,
                },
            }
            for value, schema in variants.items()
        ],
    }


def _without(node: JsonSchema, key: str) -> JsonSchema:
    return {name: value for name, value in node.items() if name != key}


def _add_examples(node: JsonSchema, path: str) -> None:
    """Adds the examples of the keys below a section."""
    sections = [node, *(option for option in node.get("anyOf", ()) if "properties" in option)]
    for section in sections:
        for key, child in section.get("properties", {}).items():
            name = f"{path}.{key}".lstrip(".")
            if name in _EXAMPLES:
                child["examples"] = _EXAMPLES[name]
            _add_examples(child["additionalProperties"] if name == "tasks" else child, name)
