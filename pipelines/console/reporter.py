"""Output of a run on stderr: progress bars in a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipelines.console.activity import (
    HEARTBEAT,
    Activity,
    BestEffortStream,
    Heartbeat,
    in_ci,
    innermost,
    track_activity,
)
from pipelines.console.plain_text import count, duration, encodes_unicode, printable, rate
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from transformers.utils import logging as transformers_logging
else:
    transformers_logging = lazy_import("transformers.utils.logging")  # 1 s that an error in the config does not need


def quiet_libraries() -> None:
    """Silences the progress bars, warnings and log messages of the libraries on the terminal."""
    # Importing Ludwig sends every INFO message to stdout unless the root logger has been configured before.
    logging.basicConfig(level=logging.WARNING, handlers=[_LogHandler()])
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


class _LogHandler(logging.StreamHandler[Any]):
    """Writes log messages as lines that begin with their level, above a progress bar if there is one."""

    @property
    def stream(self) -> IO[str]:
        return sys.stderr  # which a progress bar replaces while it is drawn

    @stream.setter
    def stream(self, stream: object) -> None:
        pass

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


class ConsoleReporter:
    """Reports stages, notes and warnings on stderr.

    In a terminal a stage is a progress bar. Elsewhere it is a line when it starts, one when it ends, and the
    heartbeat's in between: complete lines without control characters, each flushed, so that a killed process loses
    none.
    """

    def __init__(self, console: Console | None = None, heartbeat: Heartbeat = HEARTBEAT) -> None:
        self.console = console or Console(file=cast(IO[str], BestEffortStream(sys.stderr)), highlight=False)
        self.heartbeat = heartbeat
        self.has_bars = _supports_bars(self.console)

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")

    @contextlib.contextmanager
    def status(self, title: str) -> Iterator[None]:
        """Reports a stage without a count of units."""
        with self._stage(title):
            yield

    @contextlib.contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Reports a stage of `total` units. Yields a function to call with the number of units that have just been
        done."""
        with self._stage(title, total, unit) as (activity, refresh):

            def advance(units: int) -> None:
                activity.advance(units)
                refresh()

            yield advance

    @contextlib.contextmanager
    def training_steps(self, title: str) -> Iterator[Callable[[int, int, float | None], None]]:
        """Reports a training. Yields a function to call with the steps done, all steps, and the last loss."""
        with self._stage(title, None, "steps") as (activity, refresh):
            activity.note = "starting Ludwig"

            def report(done: int, total: int, loss: float | None) -> None:
                activity.reach(done, total)
                activity.note = "" if loss is None else f"loss {loss:.3f}"
                refresh()

            yield report

    @contextlib.contextmanager
    def _stage(
        self, title: str, total: int | None = None, unit: str = ""
    ) -> Iterator[tuple[Activity, Callable[[], None]]]:
        shown = self._as_bar if self.has_bars else self._as_lines
        with track_activity(title, total, unit, self.heartbeat.clock) as activity, shown(activity) as refresh:
            yield activity, refresh

    @contextlib.contextmanager
    def _as_lines(self, activity: Activity) -> Iterator[Callable[[], None]]:
        counted = "" if activity.total is None else f", {count(activity.total, activity.unit.removesuffix('s'))}"
        self._print(f"{activity.title}: started{counted}")
        with self.heartbeat.running(self._print):
            try:
                yield lambda: None
            except BaseException:
                self._print(f"{activity.title}: interrupted after {duration(activity.seconds)}")
                raise
        self._print(f"{activity.title}: {activity.summary()}")

    @contextlib.contextmanager
    def _as_bar(self, activity: Activity) -> Iterator[Callable[[], None]]:
        with self._progress_bar(activity) as progress:
            task = progress.add_task(activity.title, total=activity.total or (None if activity.unit else 1))

            def refresh() -> None:
                progress.update(task, completed=activity.done, total=activity.total)

            try:
                yield refresh
            except BaseException:
                if not activity.unit:
                    progress.update(task, visible=False)  # the error is printed below
                raise
            if not activity.unit:
                progress.update(task, completed=1)

    def _progress_bar(self, activity: Activity) -> Progress:
        spinner = SpinnerColumn("dots" if encodes_unicode(self.console) else "line", finished_text="✓")
        columns: list[ProgressColumn] = [spinner, TextColumn("{task.description}", markup=False)]
        if activity.unit:
            columns += [
                BarColumn(bar_width=24),
                _DynamicText(lambda task: activity.count),
                _DynamicText(lambda task: rate(task.speed) if task.speed else "", "progress.data.speed"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                _DynamicText(lambda task: innermost(activity) or activity.note),
            ]
        else:
            columns += [TimeElapsedColumn(), _DynamicText(lambda task: "" if task.finished else innermost(activity))]
        return Progress(*columns, console=self.console)

    def _print(self, text: str, style: str = "") -> None:
        self.heartbeat.reset()
        # In a log a message is one line, however long; in a terminal it is wrapped between words.
        line = Text(printable(text) if self.has_bars else " ".join(printable(text).split()), style=style)
        self.console.print(line, soft_wrap=not self.has_bars)


class _DynamicText(ProgressColumn):
    """A column whose text is computed whenever the bar is drawn."""

    max_refresh = 0.2

    def __init__(self, text: Callable[[Task], str], style: str = "") -> None:
        self.text, self.style = text, style
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(self.text(task), style=self.style)


def _supports_bars(console: Console) -> bool:
    """Whether the console is a terminal. With FORCE_COLOR rich takes a pipe for one, but a log shows colors only."""
    file: Any = console.file
    is_forced = bool(os.environ.get("FORCE_COLOR")) and not file.isatty()
    return console.is_interactive and not console.is_dumb_terminal and not is_forced and not in_ci()
