"""The values of a YAML file with the source location of every key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.messages import KeyPath, describe, dotted
from pipelines.errors import Problem


@dataclass(frozen=True)
class SourceLocation:
    """The source location of a key.

    file: the path of the file, or `override KEY=VALUE`.
    line: counted from 1; None for an override.
    raw_text: a scalar as it is written, without its quotes; None for lists and sections.
    """

    file: str
    line: int | None = None
    raw_text: str | None = None


@dataclass
class Document:
    """A parsed YAML file.

    value: plain data: dictionaries with text keys, lists, texts, numbers, booleans and None.
    locations: the source location of every key and list item.
    problems: syntax errors and invalid values.
    invalid_paths: keys whose value is invalid; the value here is a placeholder that is not to be checked.
    empty_paths: keys without any value, which YAML reads as null.
    """

    value: Any = None
    locations: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    invalid_paths: set[KeyPath] = field(default_factory=set)
    empty_paths: set[KeyPath] = field(default_factory=set)

    def location(self, *path: str | int) -> SourceLocation | None:
        """The location of `path`, or of its nearest parent that is in the file."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.locations:
                return self.locations[path[:length]]
        return None

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem at the location of `path`."""
        location = self.location(*path)
        return Problem(message, location.file, location.line) if location else Problem(message)

    def describe_value(self, value: Any, *path: str | int) -> str:
        """The value at `path` in words: `the text 'fast'`, `yes, which YAML reads as true`."""
        return describe(value, self.raw_text(*path))

    def raw_text(self, *path: str | int) -> str | None:
        """The scalar at `path` as it is written, without its quotes; None for anything else."""
        return self.locations[path].raw_text if path in self.locations else None

    def empty_value_problems(self, known: Iterable[Problem]) -> list[Problem]:
        """A problem for each key without a value, unless `known` already has one on its line.

        YAML reads an empty value as null, which is a valid value of keys such as `adapter`.
        """
        lines = {(problem.file, problem.line) for problem in known}
        return [
            self.problem(f"{dotted(path)} has no value; write one, or null for none", *path)
            for path in sorted(self.empty_paths, key=lambda path: [str(part) for part in path])
            if path and (self.locations[path].file, self.locations[path].line) not in lines
        ]

    def is_only_in_override(self, *path: str | int) -> bool:
        """Whether an override defines `path` and the file does not."""
        return path not in self.locations or self.locations[path].line is None

    def keys_in_file(self, *path: str | int) -> list[str]:
        """The keys that the file itself defines in the section at `path`."""
        return [
            str(key_path[-1])
            for key_path in self.locations
            if key_path and key_path[:-1] == path and not self.is_only_in_override(*key_path)
        ]

    def replace(self, path: KeyPath, new: Document) -> None:
        """Replaces what is known of `path` and the keys below it by `new`. The caller changes `value`."""
        kept = {key_path for key_path in self.locations if key_path[: len(path)] != path}
        self.locations = {key_path: location for key_path, location in self.locations.items() if key_path in kept}
        self.locations |= {path + key_path: location for key_path, location in new.locations.items()}
        self.problems.extend(new.problems)
        self.invalid_paths |= {path + key_path for key_path in new.invalid_paths}
        self.empty_paths = {key_path for key_path in self.empty_paths if key_path[: len(path)] != path}
        self.empty_paths |= {path + key_path for key_path in new.empty_paths}

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """Moves what is known of `old` and the keys below it to `new`. The caller changes `value`."""

        def moved(path: KeyPath) -> KeyPath:
            return new + path[len(old) :] if path[: len(old)] == old else path

        self.locations = {moved(path): location for path, location in self.locations.items()}
        self.invalid_paths = {moved(path) for path in self.invalid_paths}
        self.empty_paths = {moved(path) for path in self.empty_paths}


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Sorts by line, problems without a line last, and removes duplicates."""
    return list(dict.fromkeys(sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))))
