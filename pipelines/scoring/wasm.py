"""Runs a Python program in CPython compiled to WebAssembly, in its own instance, with limits on instructions and
memory.

An instance starts from a snapshot of an initialized interpreter, so a program costs about 20 ms. Outside of its memory
it can only call the functions of pipelines/scoring/wasm_host.py: no files of this machine, no network, no processes.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines.registry import lazy_import
from pipelines.scoring.wasm_host import Exit, Program, TooManyCalls, call
from pipelines.scoring.wasm_interpreter import NATIVE_STACK, compiled, engine

if TYPE_CHECKING:
    import wasmtime
else:
    wasmtime = lazy_import("wasmtime")  # 0.3 s that only unit tests need

INSTRUCTIONS = 30_000_000_000
"""WebAssembly instructions (wasmtime's "fuel") that one program may execute: about 5 s of one core, or 8 million
iterations of a small Python loop, independent of the load of the machine."""
MEMORY = 256 * 2**20
"""Bytes of one program's memory. The interpreter takes 40 MiB of them."""
WALL_SECONDS = 300.0
"""Seconds after which a program is stopped, for very slow machines. The program then counts as unsupported."""

# Recursion through C (sorted, lru_cache, repr) uses the machine's stack. This build of CPython limits it to 112 KiB of
# the available 16 MiB, a fifth of the usual recursion depth. The limits are at a fixed address of the instance's
# memory.
_STACK_BOUNDS = 26_334_064
_STACK_TOP = 16 * 2**20
_DEFAULT_STACK = (_STACK_TOP, _STACK_TOP - 112 * 2**10, _STACK_TOP - 120 * 2**10)
_WIDE_STACK = (_STACK_TOP, _STACK_TOP - 2**20, _STACK_TOP - 2**20 - 8 * 2**10)

_thread = threading.local()  # .program: the program that the instance of this thread runs


def run_program(program: Program) -> str:
    """Runs the program. Returns "" if it completed, else what stopped it: "exit" (its own call), "instructions",
    "memory", "stack", "wall clock" or "crash". Raises MachineError if the interpreter cannot be compiled."""
    template = _template()
    outcome: list[str] = []
    default_stack = threading.stack_size(2 * NATIVE_STACK)
    thread = threading.Thread(target=lambda: outcome.append(_run(template, program)))
    try:
        thread.start()
        threading.stack_size(default_stack)
        thread.join(WALL_SECONDS)
    finally:
        if thread.is_alive():  # the time limit, or Ctrl-C
            engine().increment_epoch()
            thread.join()
    return outcome[0]


def _run(template: wasmtime.InstancePre, program: Program) -> str:
    _thread.program = program
    store = wasmtime.Store(engine())
    memory = None
    try:
        store.set_limits(memory_size=MEMORY)
        store.set_epoch_deadline(1)
        store.set_fuel(INSTRUCTIONS)
        exports = template.instantiate(store).exports(store)
        memory = exports["memory"]
        _widen_stack(memory, store)
        exports["run"](store)
    except Exit:
        return "exit"
    except TooManyCalls:
        return "instructions"
    except Exception as error:  # a trap of the instance, or invalid arguments of a host function
        code = wasmtime.TrapCode
        stops = {code.OUT_OF_FUEL: "instructions", code.INTERRUPT: "wall clock", code.STACK_OVERFLOW: "stack"}
        full = memory is not None and memory.data_len(store) > MEMORY - 2**20
        return stops.get(getattr(error, "trap_code", None), "memory" if full else "crash")
    finally:
        program.instructions = INSTRUCTIONS - store.get_fuel()
        store.close()
    return ""


def _widen_stack(memory: Any, store: wasmtime.Store) -> None:
    if struct.unpack("<3I", memory.read(store, _STACK_BOUNDS, _STACK_BOUNDS + 12)) == _DEFAULT_STACK:
        memory.write(store, struct.pack("<3I", *_WIDE_STACK), _STACK_BOUNDS)


@functools.cache
def _template() -> wasmtime.InstancePre:
    """The interpreter with bound imports, which is instantiated for every program."""
    linker = wasmtime.Linker(engine())
    for imported in compiled().imports:
        linker.define_func(
            str(imported.module), str(imported.name), imported.type, _host_function(imported), access_caller=True
        )
    return linker.instantiate_pre(compiled())


def _host_function(imported: Any) -> Callable[..., int | None]:
    """The host function of an import; it converts addresses and lengths (i32) to unsigned integers."""
    are_i32 = [str(kind) == "i32" for kind in imported.type.params]
    has_result = bool(imported.type.results)

    def function(caller: Any, *values: int) -> int | None:
        arguments = tuple(
            value & 0xFFFFFFFF if is_i32 else value for value, is_i32 in zip(values, are_i32, strict=True)
        )
        error = call(_thread.program, str(imported.name), caller, arguments)
        return error if has_result else None

    return function
