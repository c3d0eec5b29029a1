"""The tensors of safetensors files, read from their headers: names, dtypes and shapes, without torch and without the
weights.

Format: 8 bytes with the header's length (little endian), the header as JSON, the tensors' bytes. (The safetensors
repository's README, "Format".)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the format."""
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype in the format's notation (F32, BF16, …) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file by name. Raises ModelError for a Git LFS pointer, a truncated file or another format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES:
            raise ModelError(f"{path} is not a safetensors file; download or save it again")
        if length + 8 > size:
            raise _truncated_error(path, size, length + 8)
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()
        }
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(
            f"{path} is not a safetensors file (its header cannot be read); download or save it again"
        ) from None
    if end > size:
        raise _truncated_error(path, size, end)
    return tensors


def _truncated_error(path: Path, size: int, expected: int) -> ModelError:
    return ModelError(f"{path} is truncated: {size:,} of at least {expected:,} bytes; download or save it again")


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder by name, from model.safetensors, else from the shards in the index.

    Raises ModelError if transformers would not find all weights: shards without an index, a shard that is missing,
    truncated or without a tensor that the index assigns to it.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        files = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:3])
        raise ModelError(
            f"model {str(folder)!r} has {files}, but neither {SINGLE} nor {INDEX}, the list of the shards; "
            f"download or save it again"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard, names in _shards(folder).items():
        if not (folder / shard).is_file():
            raise ModelError(f"model {str(folder)!r} lacks {shard}, which is in {INDEX}; download it again")
        in_shard = read_header(folder / shard)
        if missing := sorted(names - set(in_shard)):
            raise ModelError(f"{folder / shard} lacks {missing[0]}, which {INDEX} assigns to it; download it again")
        tensors |= {name: in_shard[name] for name in names}
    return tensors


def num_parameters(folder: Path) -> int:
    """The number of weights in a model's safetensors files, of tied ones counted once."""
    return sum(math.prod(tensor.shape) for tensor in read_headers(folder).values())


def _shards(folder: Path) -> dict[str, set[str]]:
    """The names of the tensors of each shard, from the index. Raises ModelError."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(str(shard), set()).add(str(name))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{folder / INDEX} cannot be read (no weight_map in JSON); download or save it again"
        ) from None
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ModelError(f"{folder / INDEX} lists {outside[0]!r}, a file outside of the folder")
    if not shards:
        raise ModelError(f"{folder / INDEX} lists no weights; download or save it again")
    return shards
