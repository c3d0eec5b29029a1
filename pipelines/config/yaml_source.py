"""Reads YAML and remembers the line of every key, so that any later finding can name its place.

Only plain data is built, never a Python object. Stricter than PyYAML: a key may stand once only, keys are
text, aliases cannot blow up. Kinder: `2e-4` is a number (YAML 1.1 wants `2.0e-4`), `2024-01-01` and `12:30`
are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.messages import KeyPath, dotted, shorten, value_words
from pipelines.errors import ConfigError, Problem

MAX_BYTES = 100_000
"""No config is longer; whoever hands over a data file is told so at once."""
MAX_DEPTH = 30
"""Lists and sections below each other."""
MAX_NODES = 20_000
"""Aliases multiply: nine lines of `[*a, *a, …]` make a billion values."""


@dataclass(frozen=True)
class Place:
    """Where a key stands. `text` is a scalar as it was written, `None` for lists and sections."""

    file: str
    line: int | None = None
    text: str | None = None


@dataclass
class Document:
    """The values of a YAML file with the place of each, and what is wrong with its form."""

    value: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[KeyPath] = field(default_factory=set)
    """Where a value could not be made; what stands there now is no finding of its own."""
    empty: set[KeyPath] = field(default_factory=set)
    """Where nothing is written at all, which YAML reads as null."""

    def place(self, *path: str | int) -> Place | None:
        """Where `path` stands, or its nearest parent that does."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return None

    def problem(self, message: str, *path: str | int) -> Problem:
        place = self.place(*path)
        return Problem(message, place.file, place.line) if place else Problem(message)

    def found(self, value: Any, *path: str | int) -> str:
        """What stands there, in words: `the text 'fast'`, `yes, which YAML reads as true`."""
        return value_words(value, self.written(*path))

    def written(self, *path: str | int) -> str | None:
        """The scalar at `path` as it was typed, without its quotes; None for anything else."""
        return self.places[path].text if path in self.places else None

    def left_empty(self, known: Iterable[Problem]) -> list[Problem]:
        """A finding for each place where nothing stands, but where `known` has one already. What was to come after it may be
        lost, and nothing has a meaning: no adapter, no system turn."""
        said = {(problem.file, problem.line) for problem in known}
        return [
            self.problem(
                f"{dotted(path)}: nothing stands here; write a value, or null where there is to be none", *path
            )
            for path in sorted(self.empty, key=lambda path: [str(part) for part in path])
            if path and (self.places[path].file, self.places[path].line) not in said
        ]

    def is_made_by_override(self, *path: str | int) -> bool:
        """Whether the file itself has nothing at `path`."""
        return path not in self.places or self.places[path].line is None

    def names_in_file(self, *path: str | int) -> list[str]:
        """The keys of a section that the file itself has."""
        return [str(at[-1]) for at in self.places if at[:-1] == path and at and not self.is_made_by_override(*at)]

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """What is known of `old` and of all below it is known of `new` from now on; the value itself is the caller's."""

        def moved(path: KeyPath) -> KeyPath:
            return new + path[len(old) :] if path[: len(old)] == old else path

        self.places = {moved(path): place for path, place in self.places.items()}
        self.unreadable = {moved(path) for path in self.unreadable}
        self.empty = {moved(path) for path in self.empty}

    def override(self, text: str) -> None:
        """Set one key from `key.path=value`; the value is YAML. Findings on it then name the override."""
        label = f"override {shorten(text)}"
        name, equals, value = text.partition("=")
        path = tuple(name.split("."))
        if len(path) > MAX_DEPTH:
            self.problems.append(Problem(f"names {len(path)} keys below each other; a config has a few", label))
            return
        if not equals or not all(path):
            self.problems.append(Problem("write key.path=value, as in trainer.epochs=1", label))
            return
        try:
            new = parse(value, label, numbered=False)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return
        section = self.value
        for depth, key in enumerate(path[:-1], start=1):
            if key not in section:
                self.places[path[:depth]] = Place(label)
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                what, found = dotted(path[:depth]), self.found(section, *path[:depth])
                advice = f"; to give it keys write {what}={{…}}" if isinstance(section, str) else ""
                self.problems.append(Problem(f"{what} is {found}, not a section{advice}", label))
                return
        section[path[-1]] = new.value
        self.problems.extend(new.problems)
        self.unreadable |= {path + at for at in new.unreadable}
        self.empty = {at for at in self.empty if at[: len(path)] != path} | {path + at for at in new.empty}
        self.places = {at: place for at, place in self.places.items() if at[: len(path)] != path}
        self.places |= {path + at: place for at, place in new.places.items()}


def read(path: Path) -> Document:
    """Read a YAML file that holds one section. Raises ConfigError where nothing can be made of it."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {(error.strerror or str(error)).lower()}", str(path))) from None
    except ValueError as error:  # a NUL in the name
        raise ConfigError(Problem(f"cannot be read: {error}", repr(str(path)))) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(Problem("is longer than 100 kB; a config is a page of YAML", str(path)))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem("is not UTF-8 here; save the file as UTF-8", str(path), line)) from None
    document = parse(text, str(path))
    if not isinstance(document.value, dict):
        found = document.found(document.value)
        raise ConfigError(Problem(f"expected sections such as `pipeline:`, found {found}", str(path), 1))
    return document


def parse(text: str, file: str, *, numbered: bool = True) -> Document:
    """Build a Document from YAML text. `numbered` False: no line numbers (an override has one line)."""
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        builder = _Builder(file, numbered)
        if node is None:  # nothing, or comments only
            return Document(None, {(): Place(file, 1 if numbered else None)}, empty={()})
        value = builder.build(node, (), 1)
    except yaml.YAMLError as error:
        line = _line(error, text)
        raise ConfigError(Problem(_explain(error), file, line if numbered else None)) from None
    except RecursionError:
        raise ConfigError(Problem("has lists or sections nested too deeply; is a ] or } missing?", file)) from None
    except (ValueError, OverflowError):  # from chr(), for an escape such as "\UFFFFFFFF"
        line = loader.line + 1 if numbered else None
        raise ConfigError(Problem("is not valid YAML: there is no character of this number", file, line)) from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(value, builder.places, builder.problems, builder.unreadable, builder.empty)


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser with the numbers of YAML 1.2."""


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


class _Builder:
    """Turns PyYAML's nodes into values, noting the place of each."""

    def __init__(self, file: str, numbered: bool) -> None:
        self.file = file
        self.numbered = numbered
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.unreadable: set[KeyPath] = set()
        self.empty: set[KeyPath] = set()
        self.nodes = 0
        self.open: set[int] = set()

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        self.count(line)
        if len(path) > MAX_DEPTH:
            raise ConfigError(self.problem("has lists or sections nested too deeply; is a ] or } missing?", line))
        if id(node) in self.open:
            raise ConfigError(
                self.problem("an alias (*) stands inside what it is a name for (&); write the value out", line)
            )
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        self.places[path] = Place(self.file, line if self.numbered else None, text)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path, line)
        self.open.add(id(node))
        value: Any
        if isinstance(node, yaml.SequenceNode):
            value = [
                self.build(item, (*path, position), item.start_mark.line + 1)
                for position, item in enumerate(node.value)
            ]
        else:
            value = {key: self.build(item, (*path, key), at) for key, (item, at) in self.items(node, path).items()}
        if node.tag not in {_TAG + "seq", _TAG + "map"}:
            self.problems.append(
                self.problem(f"{dotted(path)}: {_tag(node)} is not allowed; write a plain value", line)
            )
        self.open.discard(id(node))
        return value

    def items(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, int]]:
        """Each key with its value's node and line; what `<<` brings gives way to the section's own keys."""
        own: dict[str, tuple[yaml.Node, int]] = {}
        merged: dict[str, tuple[yaml.Node, int]] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            self.count(line)
            if key_node.tag == _TAG + "merge":
                sources = item.value if isinstance(item, yaml.SequenceNode) else [item]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode) or source is node:
                        self.problems.append(self.problem("<< takes an alias of another section", line))
                        continue
                    merged = self.items(source, path) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(self.problem("a key must be text, not a list or a section", line))
                continue
            key = key_node.value
            if key_node.tag != _TAG + "str":
                kind = {"bool": "true or false", "null": "nothing"}.get(key_node.tag.removeprefix(_TAG), "a number")
                message = f'YAML reads the key {shorten(key)} as {kind}: put it in quotes, "{shorten(key)}":'
                self.problems.append(self.problem(message, line))
            if key in own:
                message = f"{dotted((*path, key))} stands twice, here and in line {own[key][1]}; keep one"
                self.problems.append(self.problem(message, line))
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
                    self.empty |= set() if text else {path}
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
                    message = f"{_tag(node)} is not allowed; write a plain value"
        except UnicodeEncodeError:
            message = "half a character (an unpaired surrogate) stands in this text"
        except (ValueError, KeyError):
            message = f"{shorten(text)} is not a number that can be used"
        self.problems.append(self.problem(f"{dotted(path)}: {message}", line))
        self.unreadable.add(path)
        return text.encode(errors="replace").decode()

    def count(self, line: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            message = f"its aliases (& and *) make more than {MAX_NODES} values; write the values out"
            raise ConfigError(self.problem(message, line))

    def problem(self, message: str, line: int) -> Problem:
        return Problem(message, self.file, line if self.numbered else None)


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(_TAG, "!!")


def _line(error: yaml.YAMLError, text: str) -> int | None:
    marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
    if "end of stream" in str(error):
        marks.reverse()  # where the quote was opened, not where the file ends
    if "flow" in str(getattr(error, "context", "")):
        marks.reverse()  # where the bracket was opened, not what made it plain that it is not closed
    mark = marks[0] or marks[1]
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)
    return None if position is None else text.count("\n", 0, position) + 1


# What PyYAML says, and what usually is the matter.
_HINTS = {
    "while parsing a flow mapping": "a { that is opened here is not closed by }, or a comma is missing",
    "while parsing a flow sequence": "a [ that is opened here is not closed by ], or a comma is missing",
    "while parsing a flow node": "a { or [ is not closed; where an override has spaces, put quotes around the whole of it",
    "'\\t'": "indent with spaces, not with a tab",
    "mapping values are not allowed": 'put a text that holds ": " in quotes, or check the indentation',
    "expected <block end>": "check the indentation, and put a text that starts with { or [ in quotes",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "that cannot start any token": "put the text in quotes",
    "special characters": "a control character stands here",
    "undefined alias": "put a text that starts with * in quotes",
    "expected a single document": "a second `---` starts another document; keep one",
    "while scanning a quoted": "a quote is not closed",
}


def _explain(error: yaml.YAMLError) -> str:
    parts = [getattr(error, part, None) for part in ("context", "problem", "reason")]
    said = ", ".join(" ".join(part.split()) for part in parts if part) or " ".join(str(error).split())
    hint = next((hint for sign, hint in _HINTS.items() if sign in said), None)
    return f"is not valid YAML: {hint or said}"


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """By line; overrides, which have none, last. The same finding is kept once."""
    return list(dict.fromkeys(sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))))
