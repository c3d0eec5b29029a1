"""Content hashes of files and model folders: what every cached result of a model is filed under.

Every byte counts. A hash is remembered by the file's path, size, modification time, change time and inode, so that hashing a
model of gigabytes costs milliseconds from the second time on.
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
"""Files that change nothing in what a model computes: documentation, and how a tuned model was trained."""
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
"""Documentation, code and weights in formats that are never read."""
TEMPLATE_FOLDER = "additional_chat_templates"
"""The only subfolder of a model folder that is read."""
SETTLED_SECONDS = 2.0
"""A file changed more recently than this may change again within the resolution of its timestamps; its hash is not remembered."""


def fingerprint(folder: Path) -> str:
    """The first 16 hex digits of a SHA-256 over names and contents of the files that a model folder (or an adapter's) is
    loaded from: weights, config, generation config, tokenizer, chat templates. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()[:16]


def _model_files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / TEMPLATE_FOLDER):
        if not place.is_dir():
            continue
        for path in place.iterdir():
            ignored = path.name in IGNORED_NAMES or path.suffix.lower() in IGNORED_SUFFIXES or path.name.startswith(".")
            if path.is_file() and not ignored:
                yield path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content in hex: remembered, or computed and remembered. Raises OSError."""
    path = path.resolve()
    before = _identity(path)
    entry = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["identity"] == before:
            return str(known["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    settled = time.time_ns() - max(before[1:3]) > SETTLED_SECONDS * 1e9
    if settled and _identity(path) == before:
        # A cache that cannot be written costs time, not the run.
        with contextlib.suppress(OSError):
            _remember(entry, {"identity": before, "sha256": sha256})
    return sha256


def _identity(path: Path) -> list[int]:
    """Size, modification time, change time (which no program can set back) and inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remember(entry: Path, known: dict[str, object]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_suffix(f".{os.getpid()}.partial")
    temporary.write_text(json.dumps(known), encoding="utf-8")
    temporary.replace(entry)
