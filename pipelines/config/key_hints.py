"""What was meant by a key that is not known where it stands. Only what would be accepted there is suggested.

The places that a key can have are one tree: Ludwig's fields, less what alfine refuses, and `pipeline:`. A node has `types`,
`enum`, `fields`, `variants` (fields by `type`) or `each` (its keys are names of the user's), as in pipelines/ludwig_schema.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from pipelines.config.ludwig_unsupported import NARROWED, NEEDS, ONLY_WITH, lookup, refusal
from pipelines.config.messages import KeyPath, dotted, near_names
from pipelines.config.other_tools import SAME, WRITTEN, nothing_like

Node = Mapping[str, Any]

_HOMES: tuple[tuple[str, ...], ...] = (
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
"""Sections whose keys are looked for when they stand elsewhere; of two with the same key the first is named."""
_USUAL = {("adapter",): "lora", ("trainer", "optimizer"): "adamw", ("backend",): "ray"}
"""The type of a section that has none yet."""
_IN_PIPELINE = {"pipeline.temperature": ("mix", "proportional", ["temperature"])}
"""As ONLY_WITH."""
_OPPOSITES = (
    ("enable", "disable"),
    ("cpu", "gpu"),
    ("min", "max"),
    ("train", "test"),
    ("use", "no"),
    ("early", "late"),
)
_KINDS: dict[type, set[str]] = {
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    str: {"text"},
    list: {"list"},
    dict: {"mapping"},
}


class Hints:
    """Advice on the unknown keys of one config."""

    def __init__(self, tree: Mapping[str, Node], config: Mapping[str, Any]) -> None:
        """`tree`: the fields at the top of a config. `config`: what is written."""
        self.tree, self.config = tree, config
        self.homes: dict[str, tuple[str, ...]] = {}
        for section in _HOMES:
            for key in self.usable(section):
                if key != "type":
                    self.homes.setdefault(key, section)

    def usable(self, section: KeyPath) -> list[str]:
        """The keys that a section takes, those of its `type` where it has types."""
        return [key for key in self._fields(section) if not refusal(dotted((*section, key)))]

    def unknown(self, path: KeyPath, value: Any) -> str:
        """The sentence on a key that its section does not know."""
        return f"{dotted(path)}: unknown key; {self._advice(path, value)}"

    def counterpart(self, key: str, value: Any) -> str | None:
        """The sentence on a key of another tool at the top of its config, None where nothing here is like it."""
        known = key.lower() in SAME or key.lower() in WRITTEN or self.homes.get(key)
        idle = value in (None, False, "", "none", "no")
        return self.unknown((key,), value) if known and not idle and key not in self.tree else None

    def _advice(self, path: KeyPath, value: Any) -> str:
        section, name = path[:-1], str(path[-1])
        here = self.usable(section)
        near = near_names(name, [key for key in here if not _opposite(name, key)])
        if near and (len(near) > 1 or _likeness(name, near[0]) > 0.9):
            return self._meant(section, near)
        if advice := self._of_another_tool(section, name.lower().replace("-", "_"), value):
            return advice
        if name in self.homes:
            home = (*self.homes[name], name)
            return f"it belongs in {dotted(home[:-1]) if home[1:] else 'the top level'}{self._condition(home)}"
        if reason := self._refused(name):
            return reason
        if near and self._fits((*section, near[0]), name, value):
            return self._meant(section, near)
        far = near_names(name, [key for key in self.homes if not _opposite(name, key)], cutoff=0.8)
        far = [key for key in far if self._fits((*self.homes[key], key), name, value)]
        return (
            self._elsewhere((*self.homes[far[0]], far[0]))
            if len(far) == 1
            else f"known here: {', '.join(here) or 'nothing'}"
        )

    def _of_another_tool(self, section: KeyPath, key: str, value: Any) -> str | None:
        if key in SAME:
            target = tuple(SAME[key].split("."))
            in_task = len(section) == 3 and section[:2] == target[:2] == ("pipeline", "tasks")
            return self._meant(section, [target[-1]]) if in_task or section == target[:-1] else self._elsewhere(target)
        if key in WRITTEN:
            return "leave it out" if value is False else f"write {WRITTEN[key]}"
        return nothing_like(key)

    def _refused(self, name: str) -> str | None:
        """Why a key of Ludwig that stands in a wrong section would be refused in its own as well."""
        for section in _HOMES:
            if name in self._fields(section) and (refused := refusal(dotted((*section, name)))):
                return f"{dotted((*section, name))} {refused[0]} either: {refused[1]}"
        return None

    def _meant(self, section: KeyPath, keys: list[str]) -> str:
        return f"did you mean {' or '.join(key + self._condition((*section, key)) for key in keys)}?"

    def _elsewhere(self, path: tuple[str, ...]) -> str:
        *section, key = path
        place = f"{key}, which belongs in {dotted(section)}" if section else key
        return f"did you mean {place}{self._condition(path)}?"

    def _condition(self, path: KeyPath) -> str:
        """` (with decay: cosine)` where the key would have no effect beside what stands there now."""
        section, key = path[:-1], path[-1]
        usual = _USUAL.get(tuple(str(part) for part in section))
        if usual and (key not in self._fields(section) or "type" not in self._written(section)):
            return f" (with type: {usual})" if key != "type" else ""
        if (needed := lookup(NEEDS, dotted(path))) and not self._written(section).get(needed):
            return f" (with {needed})"
        rule = _IN_PIPELINE.get(dotted(path)) or lookup(ONLY_WITH, dotted(path))
        if rule is None or self._written(section).get(rule[0], rule[1]) in rule[2]:
            return ""
        needed = rule[2][0] if isinstance(rule[2][0], str) else str(rule[2][0]).lower()
        return f" (with {rule[0]}: {needed})"

    def _fits(self, path: KeyPath, name: str, value: Any) -> bool:
        """Whether a name that is only a little like the key can be meant by it: `do_train: true` is no section `trainer`."""
        node = self._node(path)
        if value is None or _likeness(name, str(path[-1])) > 0.85:
            return True
        if "enum" in node:
            return value in node["enum"]
        return "types" not in node or not _KINDS.get(type(value), set()).isdisjoint(node["types"])

    def _written(self, section: KeyPath) -> Mapping[str, Any]:
        value: Any = self.config
        for part in section:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    def _fields(self, section: KeyPath) -> Mapping[str, Node]:
        node = self._node(section)
        if "variants" not in node:
            fields: Mapping[str, Node] = node.get("fields", {})
            return fields
        kind = self._written(section).get("type")
        known = isinstance(kind, str) and kind in node["variants"]
        return node["variants"].get(kind if known else _USUAL.get(tuple(str(part) for part in section)), {})  # type: ignore[no-any-return]

    def _node(self, path: KeyPath) -> Node:
        node: Node = {"fields": self.tree}
        for depth, part in enumerate(path):
            inner = node["each"] if "each" in node else self._fields(path[:depth]).get(str(part), {})
            node = lookup(NARROWED, dotted(path[: depth + 1])) or inner
        return node


def _opposite(name: str, key: str) -> bool:
    """Whether two similar names mean the opposite: disable_… and enable_…"""
    one, other = ({*text.lower().replace("-", "_").split("_")} for text in (name, key))
    return any(pair[0] in one - other and pair[1] in other - one for a, b in _OPPOSITES for pair in ((a, b), (b, a)))


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
