"""What can go wrong, as types. Library code raises these; only the command line prints them, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding: what is wrong and what to write instead, with the place where it stands."""

    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        text = f"{place}: {self.message}" if place else self.message
        # Names come from files: a line break in one would make two lines of the message, an escape sequence act in the terminal.
        return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class AlfineError(Exception):
    """Something the user can mend. `exit_code` is what the command ends with."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(AlfineError):
    """The YAML file."""


class DataError(AlfineError):
    """The rows."""


class ModelError(AlfineError):
    """The base model."""


class RunError(AlfineError):
    """The run folder."""


class MachineError(AlfineError):
    """Disk, memory, permissions: not the user's mistake."""

    exit_code = 1
