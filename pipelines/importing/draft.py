"""A job under construction, and the account of every key of the config that it is made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipelines.config.messages import KeyPath, dotted
from pipelines.config.other_tools import no_counterpart_reason
from pipelines.config.yaml_source import Document
from pipelines.errors import ConfigError

ALFINE_DEFAULTS: dict[str, Any] = {
    "adapter.bias_type": "none",
    "adapter.use_dora": False,
    "adapter.use_rslora": False,
    "generation.do_sample": False,
    "generation.num_beams": 1,
    "pipeline.mix": "proportional",
    "pipeline.seed": 42,
    "pipeline.split": {"validation": 0.1, "test": 0.1},
    "quantization.bnb_4bit_quant_type": "nf4",
    "quantization.bnb_4bit_use_double_quant": True,
    "trainer.checkpoints_per_epoch": 1,
    "trainer.enable_gradient_checkpointing": False,
    "trainer.gradient_accumulation_steps": 1,
    "trainer.learning_rate_scheduler.decay": None,
    "trainer.learning_rate_scheduler.warmup_fraction": 0,
    "trainer.should_shuffle": True,
}
"""Values that a job has without the key. They are left out of what is written."""
NO_VALUE, OFF = "no value", "off"
UNKNOWN = "alfine import does not know this key"


class JobDraft:
    """The job and the account of the source's keys.

    source: the config of the other tool.
    tool: the tool, as in "an axolotl".
    config: the job, as it will be written.
    comments: key of the job → the comment on its line.
    mapped: key of the source → the key of the job that it became.
    changed: key of the source → what is different in the job.
    dropped: key of the source → why the job does not have it.
    notes: what to know of the job that no single key says.
    """

    def __init__(self, source: Document, tool: str) -> None:
        self.source, self.tool = source, tool
        self.config: dict[str, Any] = {"pipeline": {"tasks": {}}}
        self.comments: dict[KeyPath, str] = {}
        self.mapped: dict[KeyPath, str] = {}
        self.changed: dict[KeyPath, str] = {}
        self.dropped: dict[KeyPath, str] = {}
        self.notes: list[str] = []
        self.info_folder: Path | None = None
        """The folder of a file that describes the data sets of the source."""

    @property
    def file(self) -> str:
        """The path of the source."""
        return str(self.source.locations[()].file)

    @property
    def path(self) -> Path:
        """The path of the source."""
        return Path(self.file)

    @property
    def task_names(self) -> list[str]:
        """The names of the job's tasks."""
        return list(self.config["pipeline"]["tasks"])

    def get(self, *path: str | int, default: Any = None) -> Any:
        """The value of a key of the source; `default` without it, or if it is null."""
        value: Any = self.source.value
        for part in path:
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return default
        return default if value is None else value

    def section(self, *path: str | int) -> Mapping[str, Any]:
        """The section at a key of the source; empty without it, or for another value."""
        value = self.get(*path)
        return value if isinstance(value, Mapping) else {}

    def items(self, *path: str | int) -> list[Any]:
        """The list at a key of the source; empty without it, or for another value."""
        value = self.get(*path)
        return value if isinstance(value, list) else []

    def number(self, *path: str | int, default: float | None = None) -> float | None:
        """The number at a key of the source; `default` without it. Raises ConfigError for another type."""
        value = self.get(*path, default=default)
        if isinstance(value, str):  # axolotl and LLaMA-Factory read YAML 1.1, where 2e-4 is a text
            with contextlib.suppress(ValueError):
                value = float(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.refuse(f"expected a number, found {self.source.describe_value(value, *path)}", *path)
        return value

    def whole(self, *path: str | int, default: int | None = None) -> int | None:
        """The whole number at a key of the source, as `number`."""
        value = self.number(*path, default=default)
        if value is not None and not float(value).is_integer():
            self.refuse(f"expected a whole number, found {value:g}", *path)
        return None if value is None else int(value)

    def refuse(self, message: str, *path: str | int) -> NoReturn:
        """Raises ConfigError, located at a key of the source."""
        prefix = f"{dotted(path)}: " if path else ""
        raise ConfigError(self.source.problem(prefix + message, *path))

    def put(self, key: str, value: Any, *sources: KeyPath | str, comment: str | None = None) -> None:
        """Writes a key of the job.

        key: the dotted key of the job.
        sources: the keys of the source that it is made from; the comment names them.
        comment: a comment instead of these names.
        """
        paths = [path for path in map(_as_path, sources) if self.has(*path)]
        for path in paths:
            self.mapped[path] = key
        if key in ALFINE_DEFAULTS and ALFINE_DEFAULTS[key] == value:
            return
        *sections, name = key.split(".")
        section = self.config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
        named = [dotted(path) for path in paths if dotted(path) != key]
        if comment is None and named:
            lines = list(dict.fromkeys(self._line(path) for path in paths))
            where = f"line {lines[0]}" if len(lines) == 1 else f"lines {', '.join(map(str, lines))}"
            comment = f"{', '.join(named)} ({where})"
        if comment:
            self.comments[(*sections, name)] = comment

    def account(self, key: str, *sources: KeyPath | str) -> None:
        """Records keys of the source as mapped to a key of the job that is written elsewhere, or is the default."""
        for path in map(_as_path, sources):
            if self.has(*path):
                self.mapped[path] = key

    def change(self, path: KeyPath | str, message: str) -> None:
        """Records what is different from the source's key in the job."""
        if self.has(*_as_path(path)):
            self.changed[_as_path(path)] = message

    def drop(self, reason: str, *paths: KeyPath | str) -> None:
        """Records keys of the source that the job does not have, with the reason."""
        for path in map(_as_path, paths):
            if self.has(*path) and path not in self.mapped:
                self.dropped[path] = reason

    def remove(self, path: KeyPath) -> bool:
        """Takes a key out of the job again. Returns whether it was there."""
        section: Any = self.config
        for part in path[:-1]:
            section = section.get(part) if isinstance(section, Mapping) else None
        if not isinstance(section, dict) or path[-1] not in section:
            return False
        del section[path[-1]]
        self.comments = {known: text for known, text in self.comments.items() if known[: len(path)] != path}
        self.mapped = {known: key for known, key in self.mapped.items() if known[: len(path)] != path}
        return True

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def has(self, *path: str | int) -> bool:
        """Whether the source has this key, with or without a value."""
        return path in self.source.locations

    def is_on(self, *path: str | int) -> bool:
        """Whether the source's key has a value other than false."""
        return self.get(*path) not in (None, False, "", "false", "none", "no", "off")

    def account_for_the_rest(self) -> None:
        """Drops every key of the source that no rule has accounted for, each with a reason."""
        for path in self._unaccounted(self.source.value, ()):
            value = self.get(*path)
            reason = NO_VALUE if value in (None, "", [], {}) else None
            reason = reason or _reason_without_advice(str(path[-1])) or (OFF if value is False else UNKNOWN)
            self.dropped[path] = reason

    def _unaccounted(self, value: Any, path: KeyPath) -> Iterator[KeyPath]:
        """The keys that are not accounted for; a section of which no key is, as a whole."""
        if path and any(path[:length] in table for length in range(1, len(path) + 1) for table in self._tables()):
            return
        below = [known for table in self._tables() for known in table if known[: len(path)] == path]
        if path and not below:
            yield path
            return
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        for part, child in items:
            yield from self._unaccounted(child, (*path, part))

    def _tables(self) -> tuple[Mapping[KeyPath, str], ...]:
        return (self.mapped, self.changed, self.dropped)

    def _line(self, path: KeyPath) -> int | None:
        location = self.source.location(*path)
        return location.line if location else None


def _as_path(path: KeyPath | str) -> KeyPath:
    return (path,) if isinstance(path, str) else path


def _reason_without_advice(key: str) -> str | None:
    """The reason why alfine has no counterpart of a key, without "remove it"."""
    reason = no_counterpart_reason(key.lower())
    return reason.split("; remove it")[0] if reason else None
