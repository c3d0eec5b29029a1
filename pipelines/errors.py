"""The errors that library code raises. Only the command line prints them, one line each, and exits with their code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem of a file of the user: what is wrong, what to write instead, and where."""

    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        location = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        text = f"{location}: {self.message}" if location else self.message
        # Names come from files: a line break would split the message, an escape sequence would act on the terminal.
        if text.isprintable():
            return text
        return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class AlfineError(Exception):
    """An error that the user can correct. `exit_code` is the exit code of the command."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(AlfineError):
    """An error in the config or in an option of the command line."""


class DataError(AlfineError):
    """An error in the rows or their files."""


class ModelError(AlfineError):
    """An error of a base model: unknown, not available, or not supported."""


class RunError(AlfineError):
    """An error of a run folder or of an operation on it."""


class MachineError(AlfineError):
    """A lack of disk space, memory or permission, or another error of the system."""

    exit_code = 1


class UnavailableError(MachineError):
    """Something that a request needs does not answer at present. The same request may be answered later."""
