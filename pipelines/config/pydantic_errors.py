"""What pydantic finds in `pipeline:`, in sentences, and the section as a tree of fields for `key_hints`."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from pipelines.config.base import Section
from pipelines.config.key_hints import Hints, Node
from pipelines.config.messages import KeyPath, did_you_mean, dotted, number, wrong_type
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
_EXPECTED = {
    "string_type": "text",
    "float_type": "number",
    "int_type": "integer",
    "int_from_float": "integer",
    "bool_type": "boolean",
    "dict_type": "mapping",
    "model_type": "mapping",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS: dict[Any, str] = {str: "text", float: "number", int: "integer", bool: "boolean", type(None): "null"}


def tree_of(annotation: Any) -> Node:
    """The fields below a type of `pipeline:`, in the form of pipelines/ludwig_schema.json."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        fields = {key: tree_of(field.annotation) for key, field in annotation.model_fields.items()}
        return {"types": ["mapping"], "fields": fields}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return tree_of(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"types": ["mapping"], "each": tree_of(arguments[1])}
    if origin in (Union, types.UnionType):
        nodes = [tree_of(one) for one in arguments]
        sections = [node for node in nodes if "fields" in node or "each" in node]
        if all("types" in node for node in nodes):
            return {**(sections[0] if sections else {}), "types": [kind for node in nodes for kind in node["types"]]}
        return sections[0] if sections else {}
    return {"types": [_KINDS[annotation]]} if annotation in _KINDS else {}


def path_of(details: ErrorDetails) -> KeyPath:
    """Where a finding stands, from the top of the file."""
    tags = ("<file>", "<files>", "<word>", "<evals>", "[key]")
    return ("pipeline", *(part for part in details["loc"] if part not in tags))


def translate(details: ErrorDetails, document: Document, hints: Hints) -> Problem:
    """A finding of pydantic as one sentence with its place."""
    path = path_of(details)
    return document.problem(_sentence(details, path, document, hints), *path)


def _sentence(details: ErrorDetails, path: KeyPath, document: Document, hints: Hints) -> str:
    name, value, context = dotted(path), details["input"], details.get("ctx", {})
    kind, last = details["type"], str(path[-1])
    found = document.found(value, *path)
    if kind == "missing":
        return _missing(path, document)
    if kind == "extra_forbidden":
        return hints.unknown(path, value)
    if kind in _EXPECTED:
        return wrong_type([_EXPECTED[kind]], value, path, document.written(*path))
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{name} must be {words} {number(context[bound])}, found {found}"
    if kind == "literal_error" and last == "evals":
        own = "evals of your own, as in {mine: {kind: text_nll, data: mine.jsonl}}"
        return f"{name}: expected bundled, none or {own}; found {found}"
    if kind == "literal_error":
        near = did_you_mean(value, re.findall(r"'(\w+)'", context["expected"])) if isinstance(value, str) else None
        choices = context["expected"].replace("'", "")
        return f"{name}: expected one of {choices}, found {found}" + (f"; did you mean {near}?" if near else "")
    if kind == "string_pattern_mismatch":
        what = "retention eval" if "evals" in path else "task"
        return f"{name}: the name of a {what} has letters, digits, _ and - only"
    if kind in ("string_too_short", "too_short"):
        return f"{name} is empty" + (f"; write {_EXAMPLES['tasks']}" if last == "tasks" else "")
    return f"{name}: {context.get('error', details['msg'])}"


def _missing(path: KeyPath, document: Document) -> str:
    """A key that its section needs. Where only an override names the section, the name itself is what is wrong."""
    section, last = path[:-1], str(path[-1])
    if document.is_made_by_override(*section) and section[:-1] in _NAMED:
        what, known = _NAMED[section[:-1]], document.names_in_file(*section[:-1])
        near = did_you_mean(str(section[-1]), known)
        whole = f"write it in full, as in {_WHOLE[what]}"
        advice = f"did you mean {near}?" if near else f"the {what}s are {', '.join(known)}" if known else whole
        return f"{dotted(section)}: there is no {what} {section[-1]} in the file; {advice}"
    example = (
        "data: data/retention/passages.jsonl"
        if "evals" in path and last == "data"
        else _EXAMPLES.get(last, f"{last}: …")
    )
    return f"{dotted(path)} is missing, as in {example}"


_NAMED: Mapping[KeyPath, str] = {("pipeline", "tasks"): "task", ("pipeline", "forgetting", "evals"): "retention eval"}
"""Sections whose keys are names of the user's."""
_WHOLE = {"task": _EXAMPLES["tasks"], "retention eval": "evals: {mine: {kind: text_nll, data: mine.jsonl}}"}
