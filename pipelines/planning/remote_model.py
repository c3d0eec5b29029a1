"""A base model on the Hub that is not in the cache: its sizes from its config and the headers of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ModelError
from pipelines.modeling.base_models import PACKAGED_MODELS, check_base_model
from pipelines.modeling.model_folder import read_config
from pipelines.planning.model_shape import ModelShape
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
else:  # 0.3 s that a plan for a local model does not need
    huggingface_hub, hub_errors = lazy_import("huggingface_hub"), lazy_import("huggingface_hub.errors")

SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
DOWNLOADED = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Suffixes of the files that a run downloads, see `base_models`."""


@dataclass(frozen=True)
class RemoteModel:
    """A model on the Hub: the folder with its small files in the cache, and the bytes that a run would download."""

    folder: Path
    shape: ModelShape
    download_bytes: int


def find_remote_model(name: str) -> RemoteModel:
    """Downloads the small files of a model and reads the headers of its weights by range requests.

    Raises ModelError if the name is no model of the Hub, or the Hub cannot be reached.
    """
    check_base_model(name)
    if name in PACKAGED_MODELS:
        raise ModelError(
            f"{name} is not unpacked yet, so its sizes are not known; run `alfine preview` once, then plan"
        )
    try:
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        paths = [huggingface_hub.hf_hub_download(name, file) for file in SMALL_FILES if file in files]
        metadata = huggingface_hub.get_safetensors_metadata(name)
    except hub_errors.RepositoryNotFoundError:
        raise ModelError(f"model {name!r} not found on the Hub, or private (set HF_TOKEN)") from None
    except (hub_errors.HfHubHTTPError, hub_errors.NotASafetensorsRepoError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise ModelError(
            f"model {name!r} is not in the cache, and its sizes cannot be read from the Hub ({reason})"
        ) from None
    if "config.json" not in files:
        raise ModelError(f"model {name!r} has no config.json")
    folder = Path(paths[0]).parent
    shapes = {
        tensor: tuple(entry.shape)
        for file in metadata.files_metadata.values()
        for tensor, entry in file.tensors.items()
    }
    size = sum(size for file, size in files.items() if file.endswith(".safetensors"))
    download = sum(size for file, size in files.items() if file.endswith(DOWNLOADED) and "/" not in file)
    return RemoteModel(folder, ModelShape.from_config(read_config(folder), shapes, size), download)
