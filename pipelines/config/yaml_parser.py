"""Parses YAML into plain data with source locations.

Stricter than PyYAML: it builds no Python objects, keys are text, a duplicate key is an error, and the number of
values is limited. Numbers follow YAML 1.2: `2e-4` is a number (YAML 1.1 requires `2.0e-4`), `2024-01-01` and `12:30`
are texts.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.messages import KeyPath, dotted, shorten
from pipelines.config.yaml_source import Document, SourceLocation
from pipelines.errors import ConfigError, Problem

MAX_BYTES = 100_000
MAX_DEPTH = 30
"""Nesting levels of lists and sections."""
MAX_NODES = 20_000
"""Values, with those that aliases repeat: nine lines of `[*a, *a, …]` stand for a billion values."""

_TOO_DEEP = "lists or sections are nested too deeply; is a ] or } missing?"


def read_yaml(path: Path) -> Document:
    """Parses a file that contains one section. Raises ConfigError if it cannot be read or parsed."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {(error.strerror or str(error)).lower()}", str(path))) from None
    except ValueError as error:  # a null byte in the name
        raise ConfigError(Problem(f"cannot be read: {error}", repr(str(path)))) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(Problem(f"config file exceeds {MAX_BYTES // 1000} kB", str(path)))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem("not valid UTF-8; save the file as UTF-8", str(path), line)) from None
    document = parse_yaml(text, str(path))
    if not isinstance(document.value, dict):
        description = document.describe_value(document.value)
        raise ConfigError(Problem(f"expected sections such as `pipeline:`, found {description}", str(path), 1))
    return document


def parse_yaml(text: str, file: str, *, has_lines: bool = True) -> Document:
    """Parses YAML text.

    file: the name of the source in problems.
    has_lines: False for an override, which has no line numbers.
    Raises ConfigError for a syntax error; invalid values are in the problems of the document.
    """
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:  # an empty file, or only comments
            return Document(None, {(): SourceLocation(file, 1 if has_lines else None)}, empty_paths={()})
        builder = _DocumentBuilder(file, has_lines)
        builder.document.value = builder.build(node, (), 1)
    except yaml.YAMLError as error:
        line = _error_line(error, text) if has_lines else None
        raise ConfigError(Problem(_error_message(error), file, line)) from None
    except RecursionError:
        raise ConfigError(Problem(_TOO_DEEP, file)) from None
    except (ValueError, OverflowError):  # raised by chr() for an escape such as "\UFFFFFFFF"
        line = loader.line + 1 if has_lines else None
        raise ConfigError(Problem("not valid YAML: invalid Unicode escape", file, line)) from None
    finally:
        if loader is not None:
            loader.dispose()
    return builder.document


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser with the number formats of YAML 1.2."""


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in {_TAG + "int", _TAG + "float", _TAG + "timestamp"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
              |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
              |[0-9][0-9_]*[eE][-+]?[0-9]+
              |\.(?:inf|Inf|INF|nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+.0123456789"),
)


class _DocumentBuilder:
    """Converts PyYAML's nodes to plain data and records the location of each."""

    def __init__(self, file: str, has_lines: bool) -> None:
        self.file = file
        self.has_lines = has_lines
        self.document = Document()
        self.num_nodes = 0
        self.open_nodes: set[int] = set()
        """Ids of the nodes that are being converted; an alias of one of them is a cycle."""

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        self.count_node(line)
        if len(path) > MAX_DEPTH:
            raise ConfigError(self.problem(_TOO_DEEP, line))
        if id(node) in self.open_nodes:
            raise ConfigError(
                self.problem("an alias (*) refers to a value that contains it; write the value out", line)
            )
        raw_text = node.value if isinstance(node, yaml.ScalarNode) else None
        self.document.locations[path] = SourceLocation(self.file, line if self.has_lines else None, raw_text)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path, line)
        self.open_nodes.add(id(node))
        value: Any
        if isinstance(node, yaml.SequenceNode):
            value = [
                self.build(item, (*path, index), item.start_mark.line + 1) for index, item in enumerate(node.value)
            ]
        else:
            items = self.items(node, path)
            value = {key: self.build(item, (*path, key), item_line) for key, (item, item_line) in items.items()}
        if node.tag not in {_TAG + "seq", _TAG + "map"}:
            self.report(f"{dotted(path)}: {_tag_name(node)} is not allowed; write a plain value", line)
        self.open_nodes.discard(id(node))
        return value

    def items(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, int]]:
        """Every key with the node and the line of its value. Own keys take precedence over those merged by `<<`."""
        own: dict[str, tuple[yaml.Node, int]] = {}
        merged: dict[str, tuple[yaml.Node, int]] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            self.count_node(line)
            if key_node.tag == _TAG + "merge":
                for source in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    if not isinstance(source, yaml.MappingNode) or source is node:
                        self.report("<< requires an alias of another section", line)
                        continue
                    merged = self.items(source, path) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.report("a key must be text, not a list or a section", line)
                continue
            key = key_node.value
            if key_node.tag != _TAG + "str":
                kind = {"bool": "true or false", "null": "nothing"}.get(key_node.tag.removeprefix(_TAG), "a number")
                self.report(f'YAML reads the key {shorten(key)} as {kind}; put it in quotes: "{shorten(key)}":', line)
            if key in own:
                name = dotted((*path, key))
                self.report(f"{name}: duplicate key (first defined on line {own[key][1]})", line)
            else:
                own[key] = (item, line)
        return merged | own

    def scalar(self, node: yaml.ScalarNode, path: KeyPath, line: int) -> Any:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    text.encode()
                    return text
                case "null":
                    self.document.empty_paths |= set() if text else {path}
                    return None
                case "bool":
                    return yaml.SafeLoader.bool_values[text.lower()]
                case "int":
                    return int(text.replace("_", ""))
                case "float":
                    number = float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                    if not math.isfinite(number):
                        raise ValueError
                    return number
                case _:
                    message = f"{_tag_name(node)} is not allowed; write a plain value"
        except UnicodeEncodeError:
            message = "the text contains an unpaired surrogate"
        except (ValueError, KeyError):
            message = f"{shorten(text)} is not a valid number"
        self.report(f"{dotted(path)}: {message}", line)
        self.document.invalid_paths.add(path)
        return text.encode(errors="replace").decode()

    def count_node(self, line: int) -> None:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            message = f"aliases (& and *) expand to more than {MAX_NODES} values; write the values out"
            raise ConfigError(self.problem(message, line))

    def problem(self, message: str, line: int) -> Problem:
        return Problem(message, self.file, line if self.has_lines else None)

    def report(self, message: str, line: int) -> None:
        self.document.problems.append(self.problem(message, line))


def _tag_name(node: yaml.Node) -> str:
    return str(node.tag).replace(_TAG, "!!")


def _error_line(error: yaml.YAMLError, text: str) -> int | None:
    marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
    if "end of stream" in str(error):
        marks.reverse()  # the line of the opening quote, not the end of the file
    if "flow" in str(getattr(error, "context", "")):
        marks.reverse()  # the line of the opening bracket, not where the parser gave up
    mark = marks[0] or marks[1]
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)
    return None if position is None else text.count("\n", 0, position) + 1


_SYNTAX_HINTS = {
    "while parsing a flow mapping": "a { is not closed by }, or a comma is missing",
    "while parsing a flow sequence": "a [ is not closed by ], or a comma is missing",
    "while parsing a flow node": "a { or [ is not closed; put quotes around an override that contains spaces",
    "'\\t'": "indent with spaces, not with a tab",
    "mapping values are not allowed": 'put a text that contains ": " in quotes, or check the indentation',
    "expected <block end>": "check the indentation, and put a text that starts with { or [ in quotes",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "that cannot start any token": "put the text in quotes",
    "special characters": "the text contains a control character",
    "undefined alias": "put a text that starts with * in quotes",
    "expected a single document": "a second `---` starts another document; remove it",
    "while scanning a quoted": "a quote is not closed",
}
"""Part of PyYAML's message → the usual cause."""


def _error_message(error: yaml.YAMLError) -> str:
    parts = [getattr(error, part, None) for part in ("context", "problem", "reason")]
    message = ", ".join(" ".join(part.split()) for part in parts if part) or " ".join(str(error).split())
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in message), None)
    return f"not valid YAML: {hint or message}"
