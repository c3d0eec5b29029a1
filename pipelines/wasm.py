"""CPython in WebAssembly, run by wasmtime: each program in an instance of its own, bounded in instructions and memory.

An instance starts from a snapshot in which Python is initialised already, so that a program costs about 20 ms. Its only window
are the functions below: it reads the zip file of the standard library, asks for the time and for random bytes (both the same
in every run), and exchanges messages with `Program.answer`. There are no files of this machine, no network, no processes.
"""

from __future__ import annotations

import functools
import random
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.wasm_module import NATIVE_STACK, compiled, engine

if TYPE_CHECKING:
    import wasmtime

INSTRUCTIONS = 30_000_000_000
"""WebAssembly instructions (wasmtime's "fuel") that one program may execute: about 5 s of one core, or some 8 million turns of
a small Python loop. How busy the machine is makes no difference to it."""
MEMORY = 256 * 2**20
"""Bytes of one program's memory. The interpreter takes 40 MiB of them."""
HOST_CALLS = 200_000
"""How often one program may call the functions below (clock, random bytes, output, messages), which no instruction counts."""
WALL_SECONDS = 300.0
"""A guard for broken machines, in seconds. A program that it ends counts as not run."""

# Recursion through C (sorted, lru_cache, repr) takes the machine's stack. This build of CPython stops it at 112 KiB of the 16 MiB
# that there are, a fifth of the depth that CPython has elsewhere. The bounds lie in the instance's memory, at a fixed place.
_STACK_BOUNDS = 26_334_064
_STACK_TOP = 16 * 2**20
_STACK_FOUND = (_STACK_TOP, _STACK_TOP - 112 * 2**10, _STACK_TOP - 120 * 2**10)
_STACK_SET = (_STACK_TOP, _STACK_TOP - 4 * 2**20, _STACK_TOP - 4 * 2**20 - 8 * 2**10)

_START = 1_750_000_000 * 10**9  # nanoseconds; where the clock of every program starts: June 2025
_TICK = 10**6  # nanoseconds between two looks at the clock
_WASI = "wasi_snapshot_preview1"
# Of WASI, what it takes to read a file of the one folder that there is. All else is refused.
_ALLOWED = {
    "args_get", "args_sizes_get", "environ_get", "environ_sizes_get", "clock_res_get", "fd_advise", "fd_close", "fd_fdstat_get",
    "fd_fdstat_set_flags", "fd_filestat_get", "fd_pread", "fd_prestat_get", "fd_prestat_dir_name", "fd_read", "fd_seek",
    "fd_tell", "path_filestat_get", "path_open", "proc_exit", "sched_yield",
}  # fmt: skip
_DONE, _REFUSED, _UNKNOWN, _NO_MESSAGE = 0, 58, 28, -2  # WASI's ENOTSUP and EINVAL; the message channel's failure


@dataclass
class Program:
    """One program. `answer` gets each message that it sends, and returns the reply."""

    source: str
    answer: Callable[[bytes], bytes]
    calls: int = 0
    instructions: int = 0
    """What it executed, where the guard did not end it."""
    now: int = _START
    random: random.Random = field(default_factory=lambda: random.Random(0))


class _TooManyCalls(Exception):
    pass


_thread = threading.local()  # .program: what the instance of this thread runs


def run_program(program: Program) -> str:
    """Runs it to its end. Returns "" where it ended by itself, else what stopped it: "instructions", "memory", "stack",
    "wall clock" or "crash". Raises MachineError where the interpreter cannot be compiled."""
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
        store.set_wasi(_wasi(program.source))
        store.set_epoch_deadline(1)
        store.set_fuel(INSTRUCTIONS)
        exports = template.instantiate(store).exports(store)
        memory = exports["memory"]
        _widen_stack(memory, store)
        exports["run"](store)
    except wasmtime.ExitTrap:
        return ""
    except _TooManyCalls:
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


def _wasi(source: str) -> Any:
    """Arguments and the library's folder. Standard input is empty, output goes nowhere."""
    import wasmtime

    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python", "-c", source]
    wasi.env = [("PYTHONTZPATH", "")]
    wasi.preopen_dir(str(compiled()[1]), "/usr/local/lib", False)
    return wasi


def _widen_stack(memory: Any, store: wasmtime.Store) -> None:
    place = slice(_STACK_BOUNDS, _STACK_BOUNDS + 12)
    if struct.unpack("<3I", memory.read(store, place.start, place.stop)) == _STACK_FOUND:
        memory.write(store, struct.pack("<3I", *_STACK_SET), place.start)


@functools.cache
def _template() -> wasmtime.InstancePre:
    """The interpreter with its imports bound, from which instances are made."""
    import wasmtime

    module, _ = compiled()
    linker = wasmtime.Linker(engine())
    linker.define_wasi()
    linker.allow_shadowing = True
    for needed in module.imports:
        name = str(needed.name)
        if needed.module == _WASI and name in _ALLOWED:
            continue
        function = _FUNCTIONS.get(name, lambda caller, *values: _REFUSED)
        linker.define_func(str(needed.module), name, needed.type, _counted(function), access_caller=True)
    return linker.instantiate_pre(module)


def _counted(function: Callable[..., int]) -> Callable[..., int]:
    def counted(caller: Any, *values: int) -> int:
        _thread.program.calls += 1
        if _thread.program.calls > HOST_CALLS:
            raise _TooManyCalls
        return function(caller, *(value & 0xFFFFFFFF for value in values))

    return counted


# --- what the program may call. Addresses are those of its own memory; one outside of it ends the program -----------------


def _message(caller: Any, start: int, length: int, reply_start: int, reply_length: int) -> int:
    memory = caller["memory"]
    reply = _thread.program.answer(bytes(memory.read(caller, start, start + min(length, 4096))))
    place = caller["host_alloc"](caller, len(reply)) & 0xFFFFFFFF
    if not place:
        return _NO_MESSAGE
    memory.write(caller, reply, place)
    memory.write(caller, struct.pack("<I", place), reply_start)
    memory.write(caller, struct.pack("<I", len(reply)), reply_length)
    return _DONE


def _clock(caller: Any, clock: int, precision: int, place: int) -> int:
    _thread.program.now += _TICK
    caller["memory"].write(caller, struct.pack("<Q", _thread.program.now), place)
    return _DONE


def _random(caller: Any, place: int, length: int) -> int:
    caller["memory"].write(caller, _thread.program.random.randbytes(min(length, 2**20)), place)
    return _DONE


def _write(caller: Any, file: int, pieces: int, count: int, written: int) -> int:
    """Output is dropped: all of it counts as written."""
    lengths = struct.iter_unpack("<II", caller["memory"].read(caller, pieces, pieces + 8 * min(count, 1024)))
    caller["memory"].write(caller, struct.pack("<I", sum(length for _, length in lengths) & 0xFFFFFFFF), written)
    return _DONE


def _sleep(caller: Any, asked: int, events: int, count: int, happened: int) -> int:
    """Takes no time; the clock goes on. Waiting for anything else is refused."""
    memory = caller["memory"]
    who, tag, clock, nanoseconds, _, absolute = struct.unpack("<QB7xI4xQQH6x", memory.read(caller, asked, asked + 48))
    if count != 1 or tag != 0:
        return _REFUSED
    now = _thread.program.now
    _thread.program.now = max(now, nanoseconds if absolute else now + nanoseconds) & (2**63 - 1)
    memory.write(caller, struct.pack("<QHB21x", who, _DONE, tag), events)
    memory.write(caller, struct.pack("<I", 1), happened)
    return _DONE


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "call": _message, "clock_time_get": _clock, "random_get": _random, "fd_write": _write, "poll_oneoff": _sleep,
}  # fmt: skip
