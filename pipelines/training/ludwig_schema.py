"""Writes the snapshot of Ludwig's config schema, so that checking a config does not import Ludwig (half a minute).

The snapshot, `pipelines/config/ludwig_schema.json`, describes what the installed Ludwig accepts for `model_type:
llm`; its form is documented in `pipelines.config.schema`. `pipelines/modeling/peft_defaults.json` contains what the
check of module names needs to know of PEFT and transformers. A test compares both files with the installed packages.
After an upgrade, rewrite them with

    python -m pipelines.training.ludwig_schema
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from ludwig.globals import LUDWIG_VERSION
from ludwig.schema.llms.peft import adapter_registry
from ludwig.schema.model_types.llm import LLMModelConfig
from ludwig.schema.trainer import FineTuneTrainerConfig
from ludwig.schema.utils import LudwigBaseConfig, TypeSelection
from peft.utils import constants
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipelines.config.schema import LUDWIG_SCHEMA

PEFT_DEFAULTS = LUDWIG_SCHEMA.parent.with_name("modeling") / "peft_defaults.json"

NAMES_ONLY = {"input_features", "output_features", "prompt", "defaults", "hyperopt", "adapters", "backend"}
"""Sections that alfine writes itself or does not support; the snapshot has only their names."""

TYPE_NAMES: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    list: "list",
    tuple: "list",
    dict: "mapping",
    type(None): "null",
}


def ludwig_schema() -> dict[str, Any]:
    """The schema of the installed Ludwig."""
    fields: dict[str, Any] = {name: {} for name in NAMES_ONLY}
    fields |= {
        name: _field_node(LLMModelConfig, name) for name in LLMModelConfig.model_fields if name not in NAMES_ONLY
    }
    fields["base_model"] = {"types": ["text"]}
    # Not from the registry of trainers, where alfine may have replaced `finetune`.
    fields["trainer"] = _section_node(FineTuneTrainerConfig)
    return {"ludwig": LUDWIG_VERSION, "fields": dict(sorted(fields.items()))}


def peft_defaults() -> dict[str, Any]:
    """The properties of model types in PEFT and transformers.

    Returns `targets`, the model types with default target modules by adapter type, and `renamed`, the model types
    whose weights transformers renames on loading.
    """
    names = {
        kind: f"TRANSFORMERS_MODELS_TO_{kind.upper().replace('_', '')}_TARGET_MODULES_MAPPING"
        for kind in adapter_registry
    }
    return {
        "targets": {kind: sorted(getattr(constants, name)) for kind, name in names.items()},
        "renamed": sorted(
            kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if get_checkpoint_conversion_mapping(kind)
        ),
    }


def _section_node(config_class: Any) -> dict[str, Any]:
    return {
        "types": ["mapping"],
        "fields": {name: _field_node(config_class, name) for name in config_class.model_fields},
    }


def _field_node(config_class: Any, name: str) -> dict[str, Any]:
    """The node of one field of a Ludwig config class, with its description and its default."""
    return _constraints(config_class, name) | _documentation(config_class.model_fields[name])


def _documentation(field: Any) -> dict[str, Any]:
    """The description and the default of a field, as far as it has them. A default is a single JSON value."""
    result: dict[str, Any] = {"description": " ".join(field.description.split())} if field.description else {}
    default = field.get_default(call_default_factory=False)
    if isinstance(default, str | bool | int | float):
        result["default"] = default
    return result


def _constraints(config_class: Any, name: str) -> dict[str, Any]:
    """What the values of one field must be."""
    field = _declared_field(config_class, name)
    for marker in field.metadata:
        # Ludwig marks a field with a nested config class by one of three kinds of markers.
        nested = getattr(marker, "type_selection", None) or getattr(marker, "marshmallow_field", None)
        if isinstance(nested, TypeSelection):
            node = _variants_node(nested)
        elif nested is not None or hasattr(marker, "cls"):
            # Some markers keep the class in a closure; then the default value has the class.
            inner = getattr(nested or marker, "cls", None) or type(field.get_default(call_default_factory=True))
            if not issubclass(inner, LudwigBaseConfig):
                return {}
            node = _section_node(inner)
        else:
            continue
        schema = (nested._jsonschema_type_mapping() if nested is not None else None) or {}
        if any(option.get("type") == "null" for option in schema.get("oneOf", ())):
            node["types"].append("null")
        return node
    return _value_node(field)


def _variants_node(selection: Any) -> dict[str, Any]:
    registry, pick = selection.registry, selection.get_schema_from_registry
    return {"types": ["mapping"], "variants": {kind: _section_node(pick(kind))["fields"] for kind in registry}}


def _declared_field(config_class: Any, name: str) -> Any:
    """The field of the class that declares it: in Ludwig 0.17.10 a subclass loses inherited ranges and enums."""
    for owner in config_class.__mro__:
        if name in owner.__dict__.get("__annotations__", {}):
            return owner.model_fields[name]
    raise LookupError(f"{config_class.__name__} does not declare {name}")


def _value_node(field: Any) -> dict[str, Any]:

    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if "enum" in extra:
        return {"enum": extra["enum"]}
    node = _type_node(field.annotation)
    for bound in field.metadata:
        match bound:
            case Ge():
                node["min"] = bound.ge
            case Gt():
                node["above"] = bound.gt
            case Le():
                node["max"] = bound.le
            case Lt():
                node["below"] = bound.lt
    if span := extra.get("_float_tuple_range"):
        limits = {key: span[key] for key in ("min", "max") if span[key] is not None}
        node |= {"length": span["n"], "items": {"types": ["number"], **limits}}
    return node


def _type_node(annotation: Any) -> dict[str, Any]:
    """The node of a type: `int | list[int] | None` is {"types": ["integer", "list", "null"], "items": {"types":
    ["integer"]}}."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        node: dict[str, Any] = {"types": []}
        for part in map(_type_node, typing.get_args(annotation)):
            if not part:
                return {}
            node |= part | {"types": node["types"] + part["types"]}
        return node
    origin = typing.get_origin(annotation) or annotation
    if origin not in TYPE_NAMES:
        return {}
    node = {"types": [TYPE_NAMES[origin]]}
    if origin is list and (items := typing.get_args(annotation)):
        node["items"] = _type_node(items[0])
    return node


def render(node: dict[str, Any], indent: str = "") -> str:
    """JSON with one key per line, so that changes of Ludwig are readable in a diff."""
    if not any(isinstance(value, dict) and value for value in node.values()) or "items" in node:
        return json.dumps(node)
    inner = indent + " "
    lines = [
        f"{inner}{json.dumps(key)}: {render(value, inner) if isinstance(value, dict) else json.dumps(value)}"
        for key, value in node.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    LUDWIG_SCHEMA.write_text(render(ludwig_schema()) + "\n", encoding="utf-8")
    PEFT_DEFAULTS.write_text(render(peft_defaults()) + "\n", encoding="utf-8")
    print(f"wrote {LUDWIG_SCHEMA} and {PEFT_DEFAULTS}")
