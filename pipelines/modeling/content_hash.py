"""Content hashes of files and model folders, which are the keys of cached results.

The whole content is hashed. Hashes are cached by the file's path, size, modification time, change time and inode, so
that hashing a model of gigabytes takes milliseconds after the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.modeling.base_models import TRAINING_FILE
from pipelines.storage.cache import cache_folder

IGNORED_NAMES = {TRAINING_FILE, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "README.md"}
"""Files without effect on a model: documentation, and the record of its training."""
IGNORED_SUFFIXES = {
    ".md",
    ".pdf",
    ".png",
    ".jpg",
    ".jpeg",
    ".svg",
    ".gif",
    ".log",
    ".lock",
    ".partial",
    ".py",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
}
"""Suffixes of documentation, of code and of weights in formats that are never read."""
TEMPLATE_FOLDER = "additional_chat_templates"
"""The only subfolder that the tokenizer reads."""
SETTLED_SECONDS = 2.0
"""A file changed more recently may change again within the resolution of its timestamps, so its hash is not cached."""


def fingerprint(folder: Path) -> str:
    """16 hex digits of the SHA-256 over names and contents of the files from which a model or an adapter is loaded:
    weights, config, generation config, tokenizer and chat templates. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{cached_file_sha256(path)}\0".encode())
    return digest.hexdigest()[:16]


def _model_files(folder: Path) -> Iterator[Path]:
    for directory in (folder, folder / TEMPLATE_FOLDER):
        if not directory.is_dir():
            continue
        for path in directory.iterdir():
            ignored = path.name in IGNORED_NAMES or path.suffix.lower() in IGNORED_SUFFIXES or path.name.startswith(".")
            if path.is_file() and not ignored:
                yield path


def cached_file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content in hex, from the cache or computed and cached. Raises OSError."""
    path = path.resolve()
    before = _identity(path)
    cache_file = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(cache_file.read_text(encoding="utf-8"))
        if cached["identity"] == before:
            return str(cached["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    is_settled = time.time_ns() - max(before[1:3]) > SETTLED_SECONDS * 1e9
    if is_settled and _identity(path) == before:
        # Without a writable cache the hash is computed again next time.
        with contextlib.suppress(OSError):
            _write_cache_file(cache_file, {"identity": before, "sha256": sha256})
    return sha256


def _identity(path: Path) -> list[int]:
    """Size, modification time, change time (which no program can set back) and inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _write_cache_file(cache_file: Path, content: dict[str, object]) -> None:
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    partial = cache_file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(cache_file)
