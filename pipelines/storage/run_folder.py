"""The folder of a run: the manifest of its completed stages and the lock that one process holds."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.errors import RunError
from pipelines.storage.files import write_json

FORMAT_VERSION = 2
"""The format of run folders: names of folders, files, stages and manifest keys. Another version is an error."""


class Run:
    """A run and its folder `runs/NAME/`: paths, the manifest, the stages that are complete."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest of the folder, if there is one. Raises RunError for a damaged one or another version's."""
        self.folder = folder
        self.manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "stages": {}}
        if self.manifest_path.exists():
            self.manifest = read_manifest(self.manifest_path)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run. Raises RunError if `folder` has no manifest, or not a valid one."""
        if not (folder / "manifest.json").is_file():
            raise RunError(f"{folder} is not a run folder (no manifest.json); create one with `alfine run`")
        return cls(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def command(self) -> str:
        """The command that starts or resumes the run."""
        config = str(self.manifest.get("config", "CONFIG"))
        return str(self.manifest.get("command") or shlex.join(["alfine", "run", config, "--name", self.name]))

    @property
    def config(self) -> Path | None:
        """The path of the config that created the run; None before the first stage."""
        relative = self.manifest.get("config_from_run")
        if relative is not None:
            return Path(os.path.normpath(self.folder.resolve() / relative))
        config = self.manifest.get("config")
        return None if config is None else Path(config)

    def path(self, *parts: str) -> Path:
        """A path inside the folder of the run."""
        return self.folder.joinpath(*parts)

    def update(self, **values: Any) -> None:
        """Sets keys of the manifest and writes it."""
        self.manifest.update(values)
        write_json(self.manifest_path, self.manifest)

    def is_complete(self, stage: str, inputs_digest: str) -> bool:
        """Whether the stage is complete for the digest of what it depends on."""
        entry = self.manifest["stages"].get(stage)
        return entry is not None and entry["inputs"] == inputs_digest

    def run_stage(self, stage: str, inputs_digest: str, work: Callable[[], None]) -> bool:
        """Calls `work` unless the stage is complete for the digest. Returns whether `work` was called.

        The stage's manifest entry is removed before `work` and written after it: an interrupted stage is not complete.
        """
        if self.is_complete(stage, inputs_digest):
            return False
        self.manifest["stages"].pop(stage, None)
        write_json(self.manifest_path, self.manifest)
        started = time.monotonic()
        work()
        self.manifest["stages"][stage] = {
            "seconds": round(time.monotonic() - started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "inputs": inputs_digest,
        }
        write_json(self.manifest_path, self.manifest)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock, which the system releases when the process ends. Raises RunError if it is held."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path(".lock"), timeout=0):
                yield
        except Timeout:
            raise RunError(
                f"{self.folder} is locked by another alfine process; wait for it to end, or use another --name"
            ) from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run, finished or not. Raises RunError for a damaged one or another version's."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            newer = version > FORMAT_VERSION
            raise RunError(
                f"{path} was written by {'a newer' if newer else 'an older'} alfine (format {version}; "
                f"this version reads {FORMAT_VERSION}); "
                f"{'update alfine' if newer else 'run the job again under another --name'}"
            )
        manifest["stages"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise RunError(
            f"{path} is damaged; nothing else in the folder was changed; run the job again under another --name"
        ) from None
    return dict(manifest)


def config_entries(config: Path, folder: Path) -> dict[str, str]:
    """The manifest's entries about the config of a run.

    `config` is the path as the user wrote it; `config_from_run` is relative to the run's folder, so that a project
    keeps its runs when it is moved.
    """
    from_run = os.path.relpath(config.resolve(), folder.resolve())
    return {"config": str(config), "config_from_run": from_run}


def check_same_config(config: Path, run: Run) -> None:
    """Raises RunError if another config created the run."""
    owner = run.config
    if owner is not None and not _same_file(owner, config):
        moved = "" if owner.exists() else f"; if the config was moved, move it back to {owner}"
        raise RunError(
            f"{run.folder} was created by {run.manifest['config']}; "
            f"use another name for {config} (--name, NAME= with make){moved}"
        )


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths, relative or absolute, through links or not, name the same file."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
