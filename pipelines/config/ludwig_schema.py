"""What the installed Ludwig accepts for `model_type: llm`, written down so that a check needs no Ludwig.

Importing Ludwig takes half a minute, `alfine check` may take a second. So this module walks Ludwig's config
classes once and keeps what they say in `pipelines/ludwig_schema.json`; a test compares the file with the
installed Ludwig. Rewrite the file, after a change of Ludwig's version, with

    python -m pipelines.config.ludwig_schema

A node of the snapshot describes one key. All parts are optional; an empty node accepts anything.

    {"types": ["integer", "null"], "min": 1}            a value; also "max", and exclusive "above", "below"
    {"enum": ["none", "all", null]}                     one of these values
    {"types": ["list"], "items": {...}, "length": 2}    a list
    {"types": ["mapping"], "fields": {...}}             a section with these keys
    {"types": ["mapping"], "variants": {"lora": {...fields}, ...}}   a section whose keys depend on its `type`

Beside it, `pipelines/peft_defaults.json` keeps what a check of module names needs to know of PEFT and transformers.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("ludwig_schema.json")
PEFT_DEFAULTS = SNAPSHOT.with_name("peft_defaults.json")

# Sections that alfine writes or refuses as a whole (see ludwig_keys.py): their names suffice.
NAMES_ONLY = {"input_features", "output_features", "prompt", "defaults", "hyperopt", "adapters", "backend"}

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


def snapshot() -> dict[str, Any]:
    """The snapshot of the installed Ludwig. Imports Ludwig (about half a minute)."""
    from ludwig.globals import LUDWIG_VERSION
    from ludwig.schema.model_types.llm import LLMModelConfig
    from ludwig.schema.trainer import FineTuneTrainerConfig

    fields: dict[str, Any] = {name: {} for name in NAMES_ONLY}
    fields |= {name: _node(LLMModelConfig, name) for name in LLMModelConfig.model_fields if name not in NAMES_ONLY}
    fields["base_model"] = {"types": ["text"]}
    # Not through the registry of trainers: the one `finetune` there may be ours by now.
    fields["trainer"] = _section(FineTuneTrainerConfig)
    return {"ludwig": LUDWIG_VERSION, "fields": dict(sorted(fields.items()))}


def peft_defaults() -> dict[str, Any]:
    """`targets`: for each type of adapter the model types whose target modules PEFT knows; `renamed`: the model types whose
    weights transformers gives other names on loading."""
    from ludwig.schema.llms.peft import adapter_registry
    from peft.utils import constants
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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


def _section(config_class: Any) -> dict[str, Any]:
    return {
        "types": ["mapping"],
        "fields": {name: _node(config_class, name) for name in config_class.model_fields},
    }


def _node(config_class: Any, name: str) -> dict[str, Any]:
    """Describe one field of a Ludwig config class."""
    from ludwig.schema.utils import LudwigBaseConfig, TypeSelection

    field = _declared(config_class, name)
    for marker in field.metadata:
        # Ludwig marks a field that holds another config class, by three kinds of marker.
        nested = getattr(marker, "type_selection", None) or getattr(marker, "marshmallow_field", None)
        if isinstance(nested, TypeSelection):
            described = _variants(nested)
        elif nested is not None or hasattr(marker, "cls"):
            # Some hide their class in a closure; the default value still tells it.
            inner = getattr(nested or marker, "cls", None) or type(field.get_default(call_default_factory=True))
            if not issubclass(inner, LudwigBaseConfig):
                return {}
            described = _section(inner)
        else:
            continue
        schema = (nested._jsonschema_type_mapping() if nested is not None else None) or {}
        if any(option.get("type") == "null" for option in schema.get("oneOf", ())):
            described["types"].append("null")
        return described
    return _plain(field)


def _variants(selection: Any) -> dict[str, Any]:
    registry, pick = selection.registry, selection.get_schema_from_registry
    return {"types": ["mapping"], "variants": {kind: _section(pick(kind))["fields"] for kind in registry}}


def _declared(config_class: Any, name: str) -> Any:
    """The field as its declaring class has it: in 0.17.10 a subclass loses inherited ranges and enums."""
    for owner in config_class.__mro__:
        if name in owner.__dict__.get("__annotations__", {}):
            return owner.model_fields[name]
    raise LookupError(f"{config_class.__name__} does not declare {name}")


def _plain(field: Any) -> dict[str, Any]:
    from annotated_types import Ge, Gt, Le, Lt

    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if "enum" in extra:
        return {"enum": extra["enum"]}
    node = _types(field.annotation)
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


def _types(annotation: Any) -> dict[str, Any]:
    """`int | list[int] | None` is {"types": ["integer", "list", "null"], "items": {"types": ["integer"]}}."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        node: dict[str, Any] = {"types": []}
        for part in map(_types, typing.get_args(annotation)):
            if not part:
                return {}
            node |= part | {"types": node["types"] + part["types"]}
        return node
    origin = typing.get_origin(annotation) or annotation
    if origin not in TYPE_NAMES:
        return {}
    node = {"types": [TYPE_NAMES[origin]]}
    if origin is list and (items := typing.get_args(annotation)):
        node["items"] = _types(items[0])
    return node


def render(node: dict[str, Any], indent: str = "") -> str:
    """JSON with a line per key, so that a new Ludwig shows as a readable difference."""
    if not any(isinstance(value, dict) and value for value in node.values()) or "items" in node:
        return json.dumps(node)
    inner = indent + " "
    lines = [
        f"{inner}{json.dumps(key)}: {render(value, inner) if isinstance(value, dict) else json.dumps(value)}"
        for key, value in node.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    SNAPSHOT.write_text(render(snapshot()) + "\n", encoding="utf-8")
    PEFT_DEFAULTS.write_text(render(peft_defaults()) + "\n", encoding="utf-8")
    print(f"wrote {SNAPSHOT} and {PEFT_DEFAULTS}")
