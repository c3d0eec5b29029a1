"""The current activity of the program, and lines about it if no terminal shows a progress bar.

Code that may run for long describes itself with `track_activity`; progress bars and the heartbeat read it from there.
The heartbeat is a thread, so that a line is written even while nothing reports progress: after HEARTBEAT_INTERVAL_S of
silence it writes the current state.
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

HEARTBEAT_INTERVAL_S = 30.0
"""Seconds without output after which the heartbeat writes a line."""

Clock = Callable[[], float]
"""Returns seconds since a fixed moment."""


@dataclass(eq=False)
class Activity:
    """An activity and its progress."""

    title: str
    unit: str
    total: int | None
    """The number of units, None if they are not counted."""
    clock: Clock
    done: int = 0
    note: str = ""
    """Further information, such as the loss."""

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._rate_start: tuple[float, int] | None = (self.started, 0) if self.total is not None else None

    def advance(self, units: int) -> None:
        """Adds `units` to those that are done."""
        self.done += units

    def reach(self, done: int, total: int) -> None:
        """Sets the units that are done. The rate counts from the first call, as a resumed training starts late."""
        self.done, self.total = done, total
        self._rate_start = self._rate_start or (self.clock(), done)

    @property
    def seconds(self) -> float:
        return self.clock() - self.started

    @property
    def count(self) -> str:
        """The progress, such as `12/101 steps`; empty if units are not counted."""
        return "" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"

    @property
    def rate(self) -> float | None:
        """Units per second; None before the first unit."""
        if self._rate_start is None:
            return None
        moment, done = self._rate_start
        elapsed = self.clock() - moment
        return (self.done - done) / elapsed if self.done > done and elapsed > 0 else None

    def state(self) -> str:
        """The progress with rate and remaining time, such as `12/101 steps after 30 s, 24.0/min, 3 min 42 s left, loss
        1.234`."""
        parts = [f"{self.count} after {duration(self.seconds)}" if self.count else f"{duration(self.seconds)} so far"]
        if self.rate and self.total is not None:
            parts += [rate(self.rate), f"{duration((self.total - self.done) / self.rate)} left"]
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def summary(self) -> str:
        """The final state, such as `done in 5 min 3 s, 101/101 steps, loss 0.512`."""
        return ", ".join(part for part in (f"done in {duration(self.seconds)}", self.count, self.note) if part)


_stack: list[Activity] = []
"""The current activities, the innermost last."""


@contextlib.contextmanager
def track_activity(
    title: str, total: int | None = None, unit: str = "rows", clock: Clock = time.monotonic
) -> Iterator[Activity]:
    """Makes `title` the current activity, inside of the one before, while the block runs."""
    activity = Activity(title, unit, total, clock)
    _stack.append(activity)
    try:
        yield activity
    finally:
        _stack.remove(activity)


def innermost(activity: Activity) -> str:
    """The title and the count of the innermost activity inside of `activity`; empty if there is none."""
    inner = _stack[-1] if _stack else activity
    return "" if inner is activity else f"{inner.title}: {inner.count}" if inner.count else inner.title


def current_state() -> str:
    """One line about the outermost activity and the innermost one."""
    stack = list(_stack)
    if not stack:
        return "alfine: still running"
    detail = innermost(stack[0])
    return f"{stack[0].title}: {stack[0].state()}" + (f"; {detail}" if detail else "")


class Heartbeat:
    """Writes `current_state()` after every `interval` seconds of silence, from its own thread."""

    def __init__(self, interval: float = HEARTBEAT_INTERVAL_S, clock: Clock = time.monotonic) -> None:
        self.interval, self.clock = interval, clock
        self._last_line = clock()
        self._is_running = self._is_paused = False

    def reset(self) -> None:
        """Restarts the interval after a line has been written."""
        self._last_line = self.clock()

    def beat(self, write: Callable[[str], None]) -> None:
        """Writes a line if the interval is over."""
        if self.clock() - self._last_line >= self.interval:
            self.reset()
            if not self._is_paused:
                write(current_state())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Writes nothing during the block: for a command that waits until it is stopped."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self.reset()

    @contextlib.contextmanager
    def running(self, write: Callable[[str], None]) -> Iterator[None]:
        """Runs the thread during the block; has no effect inside of another such block."""
        if self._is_running:
            yield
            return
        stopped = threading.Event()

        def loop() -> None:
            while not stopped.wait(max(0.01, self._last_line + self.interval - self.clock())):
                self.beat(write)

        self._is_running = True
        self.reset()
        thread = threading.Thread(target=loop, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_running = False
            stopped.set()
            thread.join()


HEARTBEAT = Heartbeat()
"""The heartbeat of this process."""


def supports_progress_bars(stream: Any) -> bool:
    """Whether `stream` is a terminal that can move its cursor, and not the log of a CI system."""
    terminal = stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return terminal and not in_ci()


def in_ci() -> bool:
    """Whether the variable CI is set. CI systems that provide a terminal keep its raw output as the log."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


class BestEffortStream:
    """A stream for progress only: a closed pipe, a lost terminal or a full disk does not end the program."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError) as error:
            self._discard_buffer(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._discard_buffer(error)

    def _discard_buffer(self, error: Exception) -> None:
        """Redirects a lost stream to /dev/null: text left in its buffer would make Python's last flush fail."""
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self.stream.fileno())

    def write_line(self, text: str) -> None:
        """Writes `text` as one line and flushes it."""
        self.write(f"{text}\n")
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
