"""The JSON Schema of a config, for editors: `alfine schema`.

Draft 7, which yaml-language-server supports best. The section `pipeline:` comes from the pydantic models, the rest from
the snapshot of Ludwig's schema without what alfine refuses. `UNEXPRESSED` lists what `alfine check` refuses and the
schema accepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.config.ludwig_unsupported import SCHEMA_OVERRIDES, UNSUPPORTED_VALUES, find_rule, unsupported
from pipelines.config.messages import KeyPath, dotted
from pipelines.config.pipeline_json_schema import JsonSchema, keys_by, pipeline_schema
from pipelines.config.schema import SchemaNode, ludwig_fields

SCHEMA_ID = "https://alfine/config.schema.json"
"""The `$id` by which `alfine schema` recognizes a file that it has written. It is no address."""
UNEXPRESSED: Mapping[str, str] = {
    "combinations of keys": "keys that exclude, require or have no effect without each other, in one section or two",
    "names": "a task, gate or retention eval that another key names, and that must exist",
    "templates": "the braces of a template, Jinja, and that a completion names a column",
    "strategies": "strategies that do not fit the adapter, the quantization or the number of tasks",
    "whole floats": "2.0 where alfine requires 2: JSON does not distinguish them",
    "infinity and NaN": "JSON has neither",
    "regular expressions": "the syntax of trainer.layers_to_freeze_regex",
    "YAML": "duplicate keys, keys without any value, aliases, and limits of size and depth",
    "files": "the rows, the model and other files that a config names",
}
"""What `alfine check` refuses and a JSON Schema cannot express, or only at the cost of unreadable messages."""

_DEFAULTS: Mapping[str, Any] = {
    "model_type": "llm",
    "trainer.type": "finetune",
    "trainer.epochs": 3,
    "trainer.batch_size": 8,
    "generation.do_sample": False,
    "generation.max_new_tokens": 128,
}
"""alfine's defaults where they differ from Ludwig's, see `config.job`."""
_DESCRIPTIONS: Mapping[str, str] = {
    "adapter": "The adapter that is trained; without it every weight is trained.",
    "backend": "Where training runs: in this process (local), or in several (ray).",
    "backend.trainer.fsdp": "frozen: each worker holds a part of the frozen base weights.",
    "base_model": "The model that is tuned: a packaged model (alfine models), a hub id (owner/name), or a folder.",
    "generation": "How completions are generated.",
    "preprocessing": "The longest rows.",
    "quantization": "The base in 4 or 8 bits (QLoRA).",
    "trainer": "Epochs, batches, learning rate, optimizer, schedule.",
    "trainer.effective_batch_size": "Rows per step with batch_size: auto, which fits micro-batches to the memory.",
    "trainer.learning_rate": "The maximum of the learning rate.",
}
"""Descriptions where Ludwig has none, or one that is wrong here."""
_EXAMPLES: Mapping[str, list[Any]] = {
    "base_model": ["smollm2-135m-instruct", "Qwen/Qwen2.5-1.5B-Instruct"],
    "adapter": [{"type": "lora", "r": 16, "alpha": 32}],
    "adapter.target_modules": [["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]],
    "preprocessing.global_max_sequence_length": [1024],
    "quantization": [{"bits": 4}],
    "trainer.learning_rate": [0.0002],
    "trainer.learning_rate_scheduler": [{"decay": "linear", "warmup_fraction": 0.05}],
    "trainer.optimizer": [{"type": "adamw", "weight_decay": 0.0}],
    "trainer.gradient_clipping": [{"clipglobalnorm": 1.0}],
}
_TYPES = {
    "boolean": "boolean",
    "integer": "integer",
    "number": "number",
    "text": "string",
    "list": "array",
    "mapping": "object",
    "null": "null",
}
"""Types of a `SchemaNode` → types of JSON Schema."""
_BOUNDS = {"min": "minimum", "above": "exclusiveMinimum", "max": "maximum", "below": "exclusiveMaximum"}


def config_schema() -> JsonSchema:
    """Returns the schema of a whole config."""
    properties = {"pipeline": pipeline_schema()} | _properties(ludwig_fields(), ())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": SCHEMA_ID,
        "title": "alfine config",
        "description": "A job of alfine: pipeline belongs to alfine, everything else is a Ludwig config.",
        "type": "object",
        "properties": properties,
        "required": ["pipeline", "base_model"],
        "additionalProperties": False,
    }


def _properties(fields: Mapping[str, SchemaNode], path: KeyPath) -> dict[str, JsonSchema]:
    """The schemas of the keys that alfine accepts in a section."""
    return {
        key: _node_schema(node, (*path, key)) for key, node in fields.items() if not unsupported(dotted((*path, key)))
    }


def _node_schema(node: SchemaNode, path: KeyPath) -> JsonSchema:
    """The schema of one key of Ludwig's part."""
    name = dotted(path)
    constraints: SchemaNode = find_rule(SCHEMA_OVERRIDES, name) or node
    schema = _constraints(constraints, path)
    if path == ("backend",):
        schema = {"anyOf": [{"enum": ["local", "ray"]}, schema]}
    described = {"description": _DESCRIPTIONS.get(name) or node.get("description", "")}
    default = _DEFAULTS.get(name, node.get("default"))
    result = {**(described if described["description"] else {}), **schema}
    if default is not None and _allows(schema, default):
        result["default"] = default
    if name in _EXAMPLES:
        result["examples"] = _EXAMPLES[name]
    return result


def _constraints(node: SchemaNode, path: KeyPath) -> JsonSchema:
    """What a value must be, without description and default."""
    name = dotted(path)
    if "enum" in node:
        return {"enum": _supported(node["enum"], name)}
    if "types" not in node:
        return {}
    if node["types"] == ["boolean"] and (supported := _supported((True, False), name)) != [True, False]:
        return {"enum": supported}
    types = [_TYPES[kind] for kind in node["types"] if not (kind == "integer" and "number" in node["types"])]
    schema: JsonSchema = {"type": types[0] if len(types) == 1 else types}
    schema |= {_BOUNDS[bound]: node[bound] for bound in _BOUNDS if bound in node}
    if node.get("nonempty"):
        schema |= {"pattern": r"\S"} if "string" in types else {}
        schema |= {"minItems": 1} if "array" in types else {}
    if "length" in node:
        schema |= {"minItems": node["length"], "maxItems": node["length"]}
    if node.get("items"):
        schema["items"] = _constraints(node["items"], (*path, 0))
    if "fields" in node:
        schema |= {"properties": _properties(node["fields"], path), "additionalProperties": False}
    if "variants" in node:
        schema |= _variants(node["variants"], path)
    if word := node.get("word"):
        return {"anyOf": [{"const": word}, schema]}
    return schema


def _allows(schema: JsonSchema, value: Any) -> bool:
    """Whether a key may have a single value; some defaults of Ludwig are values that alfine refuses."""
    if "anyOf" in schema:
        return any(_allows(option, value) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = schema.get("type", "string")
    names = {bool: ("boolean",), int: ("integer", "number"), float: ("number",), str: ("string",)}
    if not set(names.get(type(value), ())) & set([kinds] if isinstance(kinds, str) else kinds):
        return False
    if not isinstance(value, int | float):
        return True
    return bool(
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
        and value < schema.get("exclusiveMaximum", value + 1)
    )


def _variants(variants: Mapping[str, Mapping[str, SchemaNode]], path: KeyPath) -> JsonSchema:
    """A section whose keys depend on its `type`."""
    kinds = _supported(variants, f"{dotted(path)}.type")
    return keys_by("type", {kind: {"properties": _properties(variants[kind], path)} for kind in kinds})


def _supported(values: Iterable[Any], name: str) -> list[Any]:
    return [value for value in values if not (isinstance(value, str | bool) and (name, value) in UNSUPPORTED_VALUES)]
