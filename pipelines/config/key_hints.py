"""Suggestions for unknown keys. A suggested key is one that would be accepted in the config at hand."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from pipelines.config.ludwig_unsupported import REQUIRED_KEY, REQUIRED_VALUE, SCHEMA_OVERRIDES, find_rule, unsupported
from pipelines.config.messages import KeyPath, closest_names, dotted
from pipelines.config.other_tools import KEY_ALIASES, ON_BY_DEFAULT, REPLACEMENTS, no_counterpart_reason
from pipelines.config.schema import SchemaNode

_SECTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("trainer",),
    ("generation",),
    ("adapter",),
    ("preprocessing",),
    ("quantization",),
    ("model_parameters",),
    ("pipeline",),
    ("trainer", "learning_rate_scheduler"),
    ("trainer", "optimizer"),
    ("trainer", "gradient_clipping"),
    ("backend", "trainer"),
    ("pipeline", "tasks", "NAME"),
    ("pipeline", "split"),
    ("pipeline", "report"),
    ("pipeline", "forgetting"),
)
"""Sections in which a misplaced key is looked up. The first one that has the key is suggested."""
_DEFAULT_TYPES = {("adapter",): "lora", ("trainer", "optimizer"): "adamw", ("backend",): "ray"}
"""The `type` that is assumed for a section that has none."""
_REQUIRED_VALUE_IN_PIPELINE = {"pipeline.temperature": ("mix", "proportional", ["temperature"])}
"""See REQUIRED_VALUE."""
_ANTONYMS = (
    ("enable", "disable"),
    ("cpu", "gpu"),
    ("min", "max"),
    ("train", "test"),
    ("use", "no"),
    ("early", "late"),
)
_SCHEMA_TYPES: dict[type, set[str]] = {
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    str: {"text"},
    list: {"list"},
    dict: {"mapping"},
}


class KeyHints:
    """Suggestions for the unknown keys of one config.

    fields: the schema of the top level of a config.
    key_sections: the section that a misplaced key belongs in.
    """

    def __init__(self, fields: Mapping[str, SchemaNode], config: Mapping[str, Any]) -> None:
        self.fields, self.config = fields, config
        self.key_sections: dict[str, tuple[str, ...]] = {}
        for section in _SECTIONS:
            for key in self.accepted_keys(section):
                if key != "type":
                    self.key_sections.setdefault(key, section)

    def accepted_keys(self, section: KeyPath) -> list[str]:
        """The keys that a section accepts, given its `type` in the config."""
        return [key for key in self._fields(section) if not unsupported(dotted((*section, key)))]

    def unknown_key(self, path: KeyPath, value: Any) -> str:
        """The message on a key that its section does not accept."""
        return f"{dotted(path)}: unknown key; {self._suggestion(path, value)}"

    def foreign_key(self, key: str, value: Any) -> str | None:
        """The message on a key at the top level of another tool's config; None if alfine has no similar key."""
        has_counterpart = key.lower() in KEY_ALIASES or key.lower() in REPLACEMENTS or self.key_sections.get(key)
        is_off = value in (None, False, "", "none", "no")
        return self.unknown_key((key,), value) if has_counterpart and not is_off and key not in self.fields else None

    def _suggestion(self, path: KeyPath, value: Any) -> str:
        section, name = path[:-1], str(path[-1])
        accepted = self.accepted_keys(section)
        closest = closest_names(name, [key for key in accepted if not _are_antonyms(name, key)])
        if closest and (len(closest) > 1 or _similarity(name, closest[0]) > 0.9):
            return self._did_you_mean(section, closest)
        if suggestion := self._of_another_tool(section, name.lower().replace("-", "_"), value):
            return suggestion
        if name in self.key_sections:
            target = (*self.key_sections[name], name)
            return f"it belongs in {dotted(target[:-1]) if target[1:] else 'the top level'}{self._condition(target)}"
        if reason := self._unsupported_elsewhere(name):
            return reason
        if closest and self._accepts((*section, closest[0]), name, value):
            return self._did_you_mean(section, closest)
        elsewhere = closest_names(name, [key for key in self.key_sections if not _are_antonyms(name, key)], cutoff=0.8)
        elsewhere = [key for key in elsewhere if self._accepts((*self.key_sections[key], key), name, value)]
        if len(elsewhere) == 1:
            return self._did_you_mean_elsewhere((*self.key_sections[elsewhere[0]], elsewhere[0]))
        return f"known keys: {', '.join(accepted) or 'none'}"

    def _of_another_tool(self, section: KeyPath, key: str, value: Any) -> str | None:
        if key in KEY_ALIASES:
            target = tuple(KEY_ALIASES[key].split("."))
            in_task = len(section) == 3 and section[:2] == target[:2] == ("pipeline", "tasks")
            if in_task or section == target[:-1]:
                return self._did_you_mean(section, [target[-1]])
            return self._did_you_mean_elsewhere(target)
        if key in REPLACEMENTS:
            is_off = value is False and key not in ON_BY_DEFAULT
            return "remove it" if is_off else f"write {REPLACEMENTS[key]}"
        return no_counterpart_reason(key)

    def _unsupported_elsewhere(self, name: str) -> str | None:
        """The reason why a misplaced key of Ludwig would not be accepted in its own section either."""
        for section in _SECTIONS:
            if name in self._fields(section) and (refusal := unsupported(dotted((*section, name)))):
                return f"{dotted((*section, name))} {refusal.consequence} either: {refusal.reason}"
        return None

    def _did_you_mean(self, section: KeyPath, keys: list[str]) -> str:
        return f"did you mean {' or '.join(key + self._condition((*section, key)) for key in keys)}?"

    def _did_you_mean_elsewhere(self, path: tuple[str, ...]) -> str:
        *section, key = path
        target = f"{key}, which belongs in {dotted(section)}" if section else key
        return f"did you mean {target}{self._condition(path)}?"

    def _condition(self, path: KeyPath) -> str:
        """` (with decay: cosine)` for a key that has no effect without another value in its section."""
        section, key = path[:-1], path[-1]
        default_type = _DEFAULT_TYPES.get(tuple(str(part) for part in section))
        if default_type and (key not in self._fields(section) or "type" not in self._section(section)):
            return f" (with type: {default_type})" if key != "type" else ""
        if (required := find_rule(REQUIRED_KEY, dotted(path))) and not self._section(section).get(required):
            return f" (with {required})"
        rule = _REQUIRED_VALUE_IN_PIPELINE.get(dotted(path)) or find_rule(REQUIRED_VALUE, dotted(path))
        if rule is None:
            return ""
        neighbor, default, values = rule
        if self._section(section).get(neighbor, default) in values:
            return ""
        return f" (with {neighbor}: {values[0] if isinstance(values[0], str) else str(values[0]).lower()})"

    def _accepts(self, path: KeyPath, name: str, value: Any) -> bool:
        """Whether `name: value` can mean the less similar key at `path`. `do_train: true` cannot mean `trainer`."""
        node = self._node(path)
        if value is None or _similarity(name, str(path[-1])) > 0.85:
            return True
        if "enum" in node:
            return value in node["enum"]
        return "types" not in node or not _SCHEMA_TYPES.get(type(value), set()).isdisjoint(node["types"])

    def _section(self, path: KeyPath) -> Mapping[str, Any]:
        """The section of the config at `path`, empty if there is none."""
        value: Any = self.config
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    def _fields(self, section: KeyPath) -> Mapping[str, SchemaNode]:
        node = self._node(section)
        if "variants" not in node:
            fields: Mapping[str, SchemaNode] = node.get("fields", {})
            return fields
        kind = self._section(section).get("type")
        if not isinstance(kind, str) or kind not in node["variants"]:
            kind = _DEFAULT_TYPES.get(tuple(str(part) for part in section))
        variant: Mapping[str, SchemaNode] = node["variants"].get(kind, {})
        return variant

    def _node(self, path: KeyPath) -> SchemaNode:
        node: SchemaNode = {"fields": self.fields}
        for depth, part in enumerate(path):
            child = node["entries"] if "entries" in node else self._fields(path[:depth]).get(str(part), {})
            node = find_rule(SCHEMA_OVERRIDES, dotted(path[: depth + 1])) or child
        return node


def _are_antonyms(name: str, key: str) -> bool:
    """Whether two similar names have opposite meanings, such as `disable_…` and `enable_…`."""
    name_words, key_words = ({*text.lower().replace("-", "_").split("_")} for text in (name, key))
    return any(
        first in name_words - key_words and second in key_words - name_words
        for pair in _ANTONYMS
        for first, second in (pair, pair[::-1])
    )


def _similarity(first: str, second: str) -> float:
    return SequenceMatcher(None, first.lower(), second.lower()).ratio()
