"""The option --data of `alfine import`, and the files that a config of another tool names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.errors import ConfigError


class DataOptions:
    """The values of --data: the file of the only task, or TASK=FILE for each of several."""

    def __init__(self, values: Sequence[str]) -> None:
        self.by_task: dict[str, str] = {}
        self.unnamed: list[str] = []
        self._used: set[str] = set()
        for value in values:
            name, equals, file = value.partition("=")
            if equals and re.fullmatch(r"[A-Za-z0-9_-]+", name):
                self.by_task[name] = file
            else:
                self.unnamed.append(value)
        if len(self.unnamed) > 1:
            raise ConfigError("--data is given several times; write --data TASK=FILE for each task")

    def file_of(self, task: str, num_tasks: int) -> str | None:
        """The file of a task from the command line; None if its config is to name it.

        num_tasks: the number of tasks of the job; --data without a name is for a single one.
        """
        if task in self.by_task:
            self._used.add(task)
            return self.by_task[task]
        return self.unnamed[0] if self.unnamed and num_tasks == 1 else None

    def check_all_used(self, tasks: Iterable[str]) -> None:
        """Raises ConfigError for a value of --data that names no task, or none of several."""
        names = list(tasks)
        if self.unnamed and len(names) > 1:
            options = " ".join(f"--data {name}=FILE" for name in names)
            raise ConfigError(f"--data {self.unnamed[0]}: the job has {len(names)} tasks; write {options}")
        for name in self.by_task:
            if name not in self._used:
                raise ConfigError(f"--data {name}=…: there is no such task; the tasks are {', '.join(names)}")


def find_file(name: str, config: Path) -> Path | None:
    """A local file or folder that a config names, or None.

    Other tools look in the working directory, which is often not the config's folder: its parents are tried too.
    """
    expanded = Path(name).expanduser()
    folders = [Path(), *(config.resolve().parents)]
    candidates = [expanded] if expanded.is_absolute() else [folder / expanded for folder in folders]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def written_path(path: Path) -> str:
    """A path as a job names it: relative to the working directory if it is inside, else absolute."""
    relative = os.path.relpath(path)
    return str(path.resolve()) if relative.startswith("..") else relative


def task_name(text: str, taken: Iterable[str] = ()) -> str:
    """A name for a task, from the name of a file or a data set; different from those in `taken`."""
    stem = re.sub(r"\.(jsonl?|csv|tsv|parquet|xlsx|gz|zst|arrow|txt)$", "", Path(text.rstrip("/")).name)
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-") or "task"
    names = set(taken)
    return next(name for name in (base, *(f"{base}_{number}" for number in range(2, 10_000))) if name not in names)
