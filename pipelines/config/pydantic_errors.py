"""Messages for pydantic's errors in the section `pipeline:`, and its schema for suggestions."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from pipelines.config.base import Section
from pipelines.config.key_hints import KeyHints
from pipelines.config.messages import KeyPath, did_you_mean, dotted, format_number, wrong_type
from pipelines.config.retention_registry import RetentionEvalSettings, retention_eval_kinds
from pipelines.config.schema import SchemaNode
from pipelines.config.yaml_source import Document
from pipelines.errors import Problem

_EXAMPLES = {
    "tasks": "tasks: {sentiment: {data: data/sentiment.jsonl, prompt: …, completion: …}}",
    "data": "data: data/sentiment.jsonl",
    "prompt": 'prompt: "Is this review positive or negative?\\n{review}"',
    "completion": 'completion: "{label}"',
    "min_gain": "min_gain: 5",
    "train": "train: data/train.jsonl",
    "kind": "kind: text_nll",
}
_EXPECTED_TYPES = {
    "string_type": "text",
    "float_type": "number",
    "int_type": "integer",
    "int_from_float": "integer",
    "bool_type": "boolean",
    "dict_type": "mapping",
    "model_type": "mapping",
}
"""Error type → key of TYPE_NAMES."""
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
"""Error type → words, and the key of the bound in the error's context."""
_SCHEMA_TYPES: dict[Any, str] = {str: "text", float: "number", int: "integer", bool: "boolean", type(None): "null"}
_UNION_TAGS = (
    "<file>",
    "<flag>",
    "<files>",
    "<splits>",
    "<word>",
    "<evals>",
    "<count>",
    "<counts>",
    "<section>",
    "[key]",
)
"""Parts of pydantic's error locations that are not keys of the YAML."""
_NAMED_SECTIONS: Mapping[KeyPath, str] = {
    ("pipeline", "tasks"): "task",
    ("pipeline", "forgetting", "evals"): "retention eval",
}
"""Sections whose keys are names that the user chooses."""
_SECTION_EXAMPLES = {"task": _EXAMPLES["tasks"], "retention eval": "evals: {mine: {kind: text_nll, data: mine.jsonl}}"}


def schema_of(annotation: Any) -> SchemaNode:
    """The schema of a type of the section `pipeline:`."""
    if annotation is RetentionEvalSettings:
        kinds = retention_eval_kinds()
        fields = {key: node for kind in kinds.values() for key, node in schema_of(kind)["fields"].items()}
        return {"types": ["mapping"], "fields": {**fields, "kind": {"enum": list(kinds)}}}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        fields = {key: schema_of(field.annotation) for key, field in annotation.model_fields.items()}
        return {"types": ["mapping"], "fields": fields}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return schema_of(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"types": ["mapping"], "entries": schema_of(arguments[1])}
    if origin in (Union, types.UnionType):
        nodes = [schema_of(argument) for argument in arguments]
        sections = [node for node in nodes if "fields" in node or "entries" in node]
        if all("types" in node for node in nodes):
            return {**(sections[0] if sections else {}), "types": [kind for node in nodes for kind in node["types"]]}
        return sections[0] if sections else {}
    return {"types": [_SCHEMA_TYPES[annotation]]} if annotation in _SCHEMA_TYPES else {}


def error_path(details: ErrorDetails) -> KeyPath:
    """The key of an error, from the top of the file."""
    return ("pipeline", *(part for part in details["loc"] if part not in _UNION_TAGS))


def to_problem(details: ErrorDetails, document: Document, hints: KeyHints) -> Problem:
    """An error of pydantic as a problem with its source location."""
    path = error_path(details)
    return document.problem(_message(details, path, document, hints), *path)


def _message(details: ErrorDetails, path: KeyPath, document: Document, hints: KeyHints) -> str:
    name, value, context = dotted(path), details["input"], details.get("ctx", {})
    kind, key = details["type"], str(path[-1])
    description = document.describe_value(value, *path)
    if kind == "missing":
        return _missing(path, document)
    if kind == "extra_forbidden":
        return hints.unknown_key(path, value)
    if kind in _EXPECTED_TYPES:
        return wrong_type([_EXPECTED_TYPES[kind]], value, path, document.raw_text(*path))
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{name} must be {words} {format_number(context[bound])}, found {description}"
    if kind == "literal_error" and key == "evals":
        own_evals = "evals of your own, as in {mine: {kind: text_nll, data: mine.jsonl}}"
        return f"{name}: expected bundled, none or {own_evals}; found {description}"
    if kind == "literal_error":
        closest = did_you_mean(value, re.findall(r"'(\w+)'", context["expected"])) if isinstance(value, str) else None
        message = f"{name}: expected one of {context['expected'].replace("'", '')}, found {description}"
        return f"{message}; did you mean {closest}?" if closest else message
    if kind == "string_pattern_mismatch":
        what = "retention eval" if "evals" in path else "task"
        return f"{name}: the name of a {what} may only contain letters, digits, _ and -"
    if kind in ("string_too_short", "too_short"):
        return f"{name} is empty" + (f"; write {_EXAMPLES['tasks']}" if key == "tasks" else "")
    return f"{name}: {context.get('error', details['msg'])}"


def _missing(path: KeyPath, document: Document) -> str:
    """The message on a missing key. If only an override defines its section, the name of the section is wrong."""
    section, key = path[:-1], str(path[-1])
    if document.is_only_in_override(*section) and section[:-1] in _NAMED_SECTIONS:
        what, known = _NAMED_SECTIONS[section[:-1]], document.keys_in_file(*section[:-1])
        closest = did_you_mean(str(section[-1]), known)
        if closest:
            hint = f"did you mean {closest}?"
        elif known:
            hint = f"the {what}s are {', '.join(known)}"
        else:
            hint = f"write it in full, as in {_SECTION_EXAMPLES[what]}"
        return f"{dotted(section)}: the file has no {what} {section[-1]}; {hint}"
    is_eval_data = "evals" in path and key == "data"
    example = "data: data/retention/passages.jsonl" if is_eval_data else _EXAMPLES.get(key, f"{key}: …")
    return f"{dotted(path)} is missing, as in {example}"
