"""What a safetensors file holds, read from its header: names, types and shapes, without torch and without the weights.

Format: 8 bytes with the header's length (little endian), the header as JSON, the tensors' bytes. (The safetensors
repository's README, "Format".)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's type, as the format writes it (F32, BF16, …), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file by name. Raises ModelError for a file that is a Git LFS pointer, cut off or no safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(len(LFS_POINTER))
        if beginning == LFS_POINTER:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES:
            raise ModelError(f"{path} is not a safetensors file; download or save it again")
        if length + 8 > size:
            raise _cut_off(path, size, length + 8)
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: TensorInfo(str(one["dtype"]), tuple(map(int, one["shape"]))) for name, one in header.items()}
        end = 8 + length + max((int(one["data_offsets"][1]) for one in header.values()), default=0)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(
            f"{path} is not a safetensors file (its header cannot be read); download or save it again"
        ) from None
    if end > size:
        raise _cut_off(path, size, end)
    return tensors


def _cut_off(path: Path, size: int, expected: int) -> ModelError:
    return ModelError(f"{path} is cut off: {size:,} bytes of at least {expected:,}; download or save it again")


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder by name, from model.safetensors, else from the shards that the index names.

    Raises ModelError where transformers would find no weights, or not all of them: no index beside shards, a shard that is
    missing, cut off or without a tensor that the index places in it.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:3])
        raise ModelError(
            f"model {str(folder)!r} holds {there}, but neither {SINGLE} nor {INDEX}, which names the shards; "
            f"download or save it again"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard, names in _shards(folder).items():
        if not (folder / shard).is_file():
            raise ModelError(f"model {str(folder)!r} lacks {shard}, which {INDEX} names; download it again")
        held = read_header(folder / shard)
        if missing := sorted(names - set(held)):
            raise ModelError(f"{folder / shard} lacks {missing[0]}, which {INDEX} places there; download it again")
        tensors |= {name: held[name] for name in names}
    return tensors


def _shards(folder: Path) -> dict[str, set[str]]:
    """The names of tensors by the shard that holds them, as the index has it."""
    try:
        placed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for name, shard in placed.items():
            shards.setdefault(str(shard), set()).add(str(name))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{folder / INDEX} cannot be read (no weight_map in JSON); download or save it again"
        ) from None
    strange = [shard for shard in shards if Path(shard).name != shard]
    if strange or not shards:
        raise ModelError(
            f"{folder / INDEX} names {strange[0]!r}, a place outside of the folder"
            if strange
            else f"{folder / INDEX} names no weights; download or save it again"
        )
    return shards
