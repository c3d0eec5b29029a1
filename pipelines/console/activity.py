"""What the program is busy with at this moment, and a line about it where no terminal shows a bar.

Whatever may take long says so with `doing`; whoever watches (a bar, the heartbeat) reads it from there. The heartbeat is a
thread, so that a line comes also while nothing reports progress: after `LINE_EVERY` seconds of silence it writes the last state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.console.plain_text import duration, rate

LINE_EVERY = 30.0
"""Seconds without a line after which the heartbeat writes one."""

Clock = Callable[[], float]
"""Seconds since some moment."""


@dataclass(eq=False)
class Activity:
    """One thing that is being done; `total` None where nobody counts. `note` is what else there is to say, such as a loss."""

    what: str
    unit: str
    total: int | None
    clock: Clock
    done: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._counted_from: tuple[float, int] | None = (self.started, 0) if self.total is not None else None

    def advance(self, number: int) -> None:
        """So many more are done."""
        self.done += number

    def reach(self, done: int, total: int) -> None:
        """So many are done. The first call is where the rate is counted from: a resumed training begins in the middle."""
        self.done, self.total = done, total
        self._counted_from = self._counted_from or (self.clock(), done)

    @property
    def seconds(self) -> float:
        return self.clock() - self.started

    @property
    def count(self) -> str:
        return "" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"

    @property
    def speed(self) -> float | None:
        """Units a second; None before the first."""
        if self._counted_from is None:
            return None
        moment, done = self._counted_from
        passed = self.clock() - moment
        return (self.done - done) / passed if self.done > done and passed > 0 else None

    def state(self) -> str:
        """12/101 steps after 30 s, 24.0/min, 3 min 42 s left, loss 1.234."""
        parts = [f"{self.count} after {duration(self.seconds)}" if self.count else f"{duration(self.seconds)} so far"]
        if self.speed and self.total is not None:
            parts += [rate(self.speed), f"{duration((self.total - self.done) / self.speed)} left"]
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def end(self) -> str:
        """done in 5 min 3 s, 101/101 steps, loss 0.512."""
        return ", ".join(part for part in (f"done in {duration(self.seconds)}", self.count, self.note) if part)


_stack: list[Activity] = []


@contextlib.contextmanager
def doing(what: str, total: int | None = None, unit: str = "rows", clock: Clock = time.monotonic) -> Iterator[Activity]:
    """While the block runs, `what` is what the program does, inside of what it did before."""
    activity = Activity(what, unit, total, clock)
    _stack.append(activity)
    try:
        yield activity
    finally:
        _stack.remove(activity)


def inside(activity: Activity) -> str:
    """What is being done inside of `activity`, as a few words, or nothing."""
    inner = _stack[-1] if _stack else activity
    return "" if inner is activity else f"{inner.what}: {inner.count}" if inner.count else inner.what


def state() -> str:
    """The line about everything that is being done: the stage, and what it is at."""
    stack = list(_stack)
    if not stack:
        return "alfine: still at work"
    detail = inside(stack[0])
    return f"{stack[0].what}: {stack[0].state()}" + (f"; {detail}" if detail else "")


class Heartbeat:
    """Writes `state()` after every `every` seconds of silence, from a thread of its own."""

    def __init__(self, every: float = LINE_EVERY, clock: Clock = time.monotonic) -> None:
        self.every, self.clock = every, clock
        self._said = clock()
        self._running = False

    def said(self) -> None:
        """A line has just been written by somebody else."""
        self._said = self.clock()

    def beat(self, write: Callable[[str], None]) -> None:
        """Writes a line, if it is time for one."""
        if self.clock() - self._said >= self.every:
            self.said()
            write(state())

    @contextlib.contextmanager
    def beating(self, write: Callable[[str], None]) -> Iterator[None]:
        """Beats while the block runs; inside of another such block nothing more is needed."""
        if self._running:
            yield
            return
        ended = threading.Event()

        def loop() -> None:
            while not ended.wait(max(0.01, self._said + self.every - self.clock())):
                self.beat(write)

        self._running = True
        self.said()
        thread = threading.Thread(target=loop, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._running = False
            ended.set()
            thread.join()


HEARTBEAT = Heartbeat()
"""Of this process."""


def draws(stream: Any) -> bool:
    """Whether bars may be drawn on `stream`: on a terminal that can move its cursor, and that no CI only records."""
    terminal = stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return terminal and not in_ci()


def in_ci() -> bool:
    """Whether the variable CI says so; CI systems that give a terminal keep its raw output as the log."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


class Unfailing:
    """A stream that only shows progress: a closed pipe, a terminal that is gone or a full disk does not end the work."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError) as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        """What is still buffered would make Python's own last flush fail."""
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self.stream.fileno())

    def line(self, text: str) -> None:
        """`text` as one line, at once."""
        self.write(f"{text}\n")
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
