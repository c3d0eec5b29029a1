"""Files and folders that are complete or absent, digests, and errors of the operating system.

A file is written to a staging path, flushed to disk and renamed; a folder is filled in a staging folder and renamed.
After an interruption at most a staging path (`*.partial`) remains, which the next attempt removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipelines.errors import MachineError
from pipelines.registry import lazy_import
from pipelines.storage.cache import ALFINE_CACHE_HINT, cache_folder
from pipelines.storage.strict_json import dump

if TYPE_CHECKING:
    import safetensors.torch as safetensors_torch
    import torch
else:
    safetensors_torch = lazy_import("safetensors.torch")  # torch: 3 s that `alfine check` does not need

STAGING_SUFFIX = ".partial"


def digest(*values: Any) -> str:
    """The sha256 of values that JSON can represent; other objects count by their `str`."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, suffix: str = STAGING_SUFFIX) -> Iterator[Path]:
    """Yields a staging path, which the block writes; it then replaces `path`.

    If the block raises, the staging file is removed and `path` stays as it was. An OSError without a file name gets
    that of `path`. Processes that may write the same file at the same time need different suffixes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + suffix)
    try:
        yield staging
        staging.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the error of a failed write() has no file name
        with contextlib.suppress(OSError):
            staging.unlink()
        raise


@contextlib.contextmanager
def atomic_dir(folder: Path, suffix: str = STAGING_SUFFIX, keep_existing: bool = False) -> Iterator[Path]:
    """Yields the path of a staging folder, which the block creates and fills; it then replaces `folder`.

    The staging folder of an interrupted attempt is removed first. If the block raises, the staging folder is removed
    and `folder` stays as it was. With `keep_existing`, a `folder` that another process has created is kept; processes
    that may write the same folder at the same time need different suffixes.
    """
    staging = folder.with_name(folder.name + suffix)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        if keep_existing and folder.exists():
            shutil.rmtree(staging)
        else:
            atomic_replace_dir(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def atomic_replace_dir(source: Path, target: Path) -> None:
    """Renames the finished folder `source` to `target`, which is removed first if it exists."""
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically, see `atomic_write`; it is flushed to disk before it is renamed."""
    with atomic_write(path) as staging, staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_text(path, dump(value, indent=1) + "\n")


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(dump(record) + "\n" for record in records))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a JSON string may contain U+2028 or U+0085, which splitlines() breaks at.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def save_tensors(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    """Writes a safetensors file and flushes it to disk. On an error the file is removed and OSError raised."""
    try:
        safetensors_torch.save_file(dict(tensors), path, metadata=metadata)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise (_underlying_os_error(error) or error) from None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically. Several processes may write the same file at the same time."""
    with atomic_write(path, f".{os.getpid()}{STAGING_SUFFIX}") as staging:
        save_tensors(tensors, metadata, staging)


@contextlib.contextmanager
def os_errors_as_machine_error(folder: Path) -> Iterator[None]:
    """Raises MachineError, one line of text, for an error of the operating system in the block.

    `folder` is named if the error itself names no file.
    """
    try:
        yield
    except Exception as raised:
        error = _underlying_os_error(raised)
        if error is None or error.errno is None:
            raise
        advice = ""
        path = Path(error.filename or folder).absolute()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free
            advice = f" ({free / 1e9:.1f} GB free); free some space, then run the same command again to resume"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "; use a writable folder"
        if cache_folder().absolute() in path.parents:
            advice += f"; {ALFINE_CACHE_HINT}"
        raise MachineError(f"{error.filename or folder}: {str(error.strerror).lower()}{advice}") from raised


def _underlying_os_error(error: Exception) -> OSError | None:
    """The OSError that caused `error`, or None.

    shutil's copies and Rust libraries (safetensors, tokenizers) mention its number only in their messages.
    """
    in_message = isinstance(error, shutil.Error) or "(os error " in str(error)
    if in_message and (number := re.search(r"(?:\[Errno |\(os error )(\d+)[\])]", str(error))):
        copies = error.args[0] if isinstance(error, shutil.Error) and isinstance(error.args[0], list) else []
        return OSError(int(number[1]), os.strerror(int(number[1])), *(str(target) for _, target, _ in copies[:1]))
    return error if isinstance(error, OSError) else None
