"""CPython in WebAssembly, run by wasmtime: each program in an instance of its own, bounded in instructions and memory.

An instance starts from a snapshot in which Python is initialised already, so that a program costs about 20 ms. All that it can
reach outside of its memory are the functions of pipelines/scoring/wasm_host.py: no files of this machine, no network, no processes.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines.scoring.wasm_host import Exit, Program, TooManyCalls, call
from pipelines.scoring.wasm_module import NATIVE_STACK, compiled, engine

if TYPE_CHECKING:
    import wasmtime

INSTRUCTIONS = 30_000_000_000
"""WebAssembly instructions (wasmtime's "fuel") that one program may execute: about 5 s of one core, or some 8 million turns of
a small Python loop. How busy the machine is makes no difference to it."""
MEMORY = 256 * 2**20
"""Bytes of one program's memory. The interpreter takes 40 MiB of them."""
WALL_SECONDS = 300.0
"""A guard for broken machines, in seconds. A program that it ends counts as not run."""

# Recursion through C (sorted, lru_cache, repr) takes the machine's stack. This build of CPython stops it at 112 KiB of the 16 MiB
# that there are, a fifth of the depth that CPython has elsewhere. The bounds lie in the instance's memory, at a fixed place.
_STACK_BOUNDS = 26_334_064
_STACK_TOP = 16 * 2**20
_STACK_FOUND = (_STACK_TOP, _STACK_TOP - 112 * 2**10, _STACK_TOP - 120 * 2**10)
_STACK_SET = (_STACK_TOP, _STACK_TOP - 2**20, _STACK_TOP - 2**20 - 8 * 2**10)

_thread = threading.local()  # .program: what the instance of this thread runs


def run_program(program: Program) -> str:
    """Runs it to its end. Returns "" where it came there, else what stopped it: "exit" (its own call), "instructions", "memory",
    "stack", "wall clock" or "crash". Raises MachineError where the interpreter cannot be compiled."""
    template = _template()
    ended: list[str] = []
    before = threading.stack_size(2 * NATIVE_STACK)
    thread = threading.Thread(target=lambda: ended.append(_run(template, program)))
    try:
        thread.start()
        threading.stack_size(before)
        thread.join(WALL_SECONDS)
    finally:
        if thread.is_alive():  # the guard, or Ctrl-C
            engine().increment_epoch()
            thread.join()
    return ended[0]


def _run(template: wasmtime.InstancePre, program: Program) -> str:
    import wasmtime

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
    except Exception as stopped:  # the instance's trap, or one of the functions below was given nonsense
        code = wasmtime.TrapCode
        stops = {code.OUT_OF_FUEL: "instructions", code.INTERRUPT: "wall clock", code.STACK_OVERFLOW: "stack"}
        full = memory is not None and memory.data_len(store) > MEMORY - 2**20
        return stops.get(getattr(stopped, "trap_code", None), "memory" if full else "crash")
    finally:
        program.instructions = INSTRUCTIONS - store.get_fuel()
        store.close()
    return ""


def _widen_stack(memory: Any, store: wasmtime.Store) -> None:
    place = slice(_STACK_BOUNDS, _STACK_BOUNDS + 12)
    if struct.unpack("<3I", memory.read(store, place.start, place.stop)) == _STACK_FOUND:
        memory.write(store, struct.pack("<3I", *_STACK_SET), place.start)


@functools.cache
def _template() -> wasmtime.InstancePre:
    """The interpreter with its imports bound, from which instances are made."""
    import wasmtime

    linker = wasmtime.Linker(engine())
    for needed in compiled().imports:
        linker.define_func(str(needed.module), str(needed.name), needed.type, _bound(needed), access_caller=True)
    return linker.instantiate_pre(compiled())


def _bound(needed: Any) -> Callable[..., int | None]:
    """The host's function of that name, with addresses and lengths (i32) unsigned."""
    unsigned = [str(kind) == "i32" for kind in needed.type.params]
    answers = bool(needed.type.results)

    def function(caller: Any, *values: int) -> int | None:
        arguments = tuple(value & 0xFFFFFFFF if small else value for value, small in zip(values, unsigned, strict=True))
        error = call(_thread.program, str(needed.name), caller, arguments)
        return error if answers else None

    return function
