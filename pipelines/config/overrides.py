"""Overrides on the command line: `key.path=value`."""

from __future__ import annotations

from pipelines.config.messages import dotted, shorten
from pipelines.config.yaml_parser import MAX_DEPTH, parse_yaml
from pipelines.config.yaml_source import Document, SourceLocation
from pipelines.errors import ConfigError, Problem


def apply_override(document: Document, override: str) -> None:
    """Sets one key of the document from `key.path=value`; the value is YAML. Sections that are missing are created.

    An invalid override adds to `document.problems`. Later problems with the key name the override as their file.
    """
    label = f"override {shorten(override)}"
    name, equals, value_text = override.partition("=")
    path = tuple(name.split("."))
    if len(path) > MAX_DEPTH:
        document.problems.append(Problem(f"the key has {len(path)} levels; a config has at most {MAX_DEPTH}", label))
        return
    if not equals or not all(path):
        document.problems.append(Problem("write key.path=value, as in trainer.epochs=1", label))
        return
    try:
        parsed = parse_yaml(value_text, label, has_lines=False)
    except ConfigError as error:
        document.problems.extend(error.problems)
        return
    section = document.value
    for depth, key in enumerate(path[:-1], start=1):
        if section.get(key) is None:  # missing, or null: `adapter:` and adapter.type=lora
            section[key] = {}
            document.locations[path[:depth]] = SourceLocation(label)
        section = section[key]
        if not isinstance(section, dict):
            section_name, description = dotted(path[:depth]), document.describe_value(section, *path[:depth])
            hint = f"; to give it keys, write {section_name}={{…}}" if isinstance(section, str) else ""
            document.problems.append(Problem(f"{section_name} is {description}, not a section{hint}", label))
            return
    section[path[-1]] = parsed.value
    document.replace(path, parsed)
