"""What a person sees while a run works: one line a stage, bars with rate and time left. On stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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


class RateColumn(ProgressColumn):
    """Rows or steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class Screen:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=1)
            try:
                yield
            except BaseException:
                progress.update(task, visible=False)  # the error is said once, below
                raise
            progress.update(task, completed=1)

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with self._progress(unit) as progress:
            task = progress.add_task(what, total=total, note="")
            yield lambda rows: progress.update(task, advance=rows)

    @contextlib.contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int, float | None], None]]:
        with self._progress("steps") as progress:
            task = progress.add_task(what, total=None, note="starting Ludwig")

            def report(done: int, total: int, loss: float | None) -> None:
                progress.update(task, completed=done, total=total, note="" if loss is None else f"loss {loss:.3f}")

            yield report

    def _progress(self, unit: str) -> Progress:
        return Progress(
            SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn(f"{{task.completed:.0f}}/{{task.total}} {unit}"), RateColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console,
        )  # fmt: skip
