"""What a person sees while a run works, on stderr: bars with rate and time left in a terminal, else lines for a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

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

from pipelines.console.activity import HEARTBEAT, Activity, Heartbeat, Unfailing, doing, in_ci, inside
from pipelines.console.plain_text import count, duration, printable, rate, speaks_unicode


def quiet_libraries() -> None:
    """One voice on the terminal: ours. What the libraries log while training goes to a file."""
    import logging
    import os
    import warnings

    # Ludwig, imported, sends everybody's INFO to stdout, unless the root logger has been set up before.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


class ConsoleReporter:
    """Stages as bars where `console` is a terminal. Elsewhere a line when a stage begins and one when it ends, and in between
    those of the heartbeat: whole lines without control characters, flushed, so that a kill loses none."""

    def __init__(self, console: Console | None = None, heartbeat: Heartbeat = HEARTBEAT) -> None:
        self.console = console or Console(file=cast(IO[str], Unfailing(sys.stderr)), highlight=False)
        self.heartbeat = heartbeat
        self.bars = _draws_bars(self.console)

    def note(self, text: str) -> None:
        self._say(text, "dim")

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", "yellow")

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A stage of which nobody counts the parts."""
        with self._stage(what):
            yield

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A stage of `total` parts; what it gives is called with the number of parts just done."""
        with self._stage(what, total, unit) as (activity, show):

            def advance(number: int) -> None:
                activity.advance(number)
                show()

            yield advance

    @contextlib.contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int, float | None], None]]:
        """A training; what it gives is called with steps done, steps in all, and the last loss."""
        with self._stage(what, None, "steps") as (activity, show):
            activity.note = "starting Ludwig"

            def report(done: int, total: int, loss: float | None) -> None:
                activity.reach(done, total)
                activity.note = "" if loss is None else f"loss {loss:.3f}"
                show()

            yield report

    @contextlib.contextmanager
    def _stage(
        self, what: str, total: int | None = None, unit: str = ""
    ) -> Iterator[tuple[Activity, Callable[[], None]]]:
        shown = self._bar if self.bars else self._lines
        with doing(what, total, unit, self.heartbeat.clock) as activity, shown(activity) as show:
            yield activity, show

    @contextlib.contextmanager
    def _lines(self, activity: Activity) -> Iterator[Callable[[], None]]:
        counted = "" if activity.total is None else f", {count(activity.total, activity.unit.removesuffix('s'))}"
        self._say(f"{activity.what}: started{counted}")
        with self.heartbeat.beating(self._say):
            try:
                yield lambda: None
            except BaseException:
                self._say(f"{activity.what}: broken off after {duration(activity.seconds)}")
                raise
        self._say(f"{activity.what}: {activity.end()}")

    @contextlib.contextmanager
    def _bar(self, activity: Activity) -> Iterator[Callable[[], None]]:
        with self._progress(activity) as progress:
            task = progress.add_task(activity.what, total=activity.total or (None if activity.unit else 1))

            def show() -> None:
                progress.update(task, completed=activity.done, total=activity.total)

            try:
                yield show
            except BaseException:
                if not activity.unit:
                    progress.update(task, visible=False)  # the error is said once, below
                raise
            if not activity.unit:
                progress.update(task, completed=1)

    def _progress(self, activity: Activity) -> Progress:
        spinner = SpinnerColumn("dots" if speaks_unicode(self.console) else "line", finished_text="✓")
        columns: list[ProgressColumn] = [spinner, TextColumn("{task.description}", markup=False)]
        if activity.unit:
            columns += [
                BarColumn(bar_width=24),
                _Words(lambda task: activity.count),
                _Words(lambda task: rate(task.speed) if task.speed else "", "progress.data.speed"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                _Words(lambda task: inside(activity) or activity.note),
            ]
        else:
            columns += [TimeElapsedColumn(), _Words(lambda task: "" if task.finished else inside(activity))]
        return Progress(*columns, console=self.console)

    def _say(self, text: str, style: str = "") -> None:
        self.heartbeat.said()
        # One line stays one line in a log, however long; a terminal's are broken between words.
        line = Text(printable(text) if self.bars else " ".join(printable(text).split()), style=style)
        self.console.print(line, soft_wrap=not self.bars)


class _Words(ProgressColumn):
    """Words that are looked up whenever the bar is drawn."""

    max_refresh = 0.2

    def __init__(self, words: Callable[[Task], str], style: str = "") -> None:
        self.words, self.style = words, style
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(self.words(task), style=self.style)


def _draws_bars(console: Console) -> bool:
    """FORCE_COLOR makes rich take a pipe for a terminal: it asks for colour, which a log can show, not for a moving cursor."""
    import os

    file: Any = console.file
    forced = bool(os.environ.get("FORCE_COLOR")) and not file.isatty()
    return console.is_interactive and not console.is_dumb_terminal and not forced and not in_ci()
