"""Answers on the screen while they are generated: side by side in a wide terminal, else one below the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from pipelines.chat.session import Answer, Turn
from pipelines.console.plain_text import printable
from pipelines.errors import AlfineError
from pipelines.inference.requests import GenerationStream, TextDelta

MIN_COLUMNS = 100
"""The width of a terminal from which answers are side by side."""
REFRESH_PER_SECOND = 12
INTERRUPTED = 130
"""The exit code of a chat that Ctrl-C ends."""
STYLES = {"base": "bold cyan", "tuned": "bold green"}


class Display(Protocol):
    """Shows the lines of a chat and the answers of its turns."""

    def line(self, text: str, style: str = "") -> None:
        """Shows a text of the program."""
        ...

    def show(self, turn: Turn) -> None:
        """Shows the answers while they are generated, and fills those of the turn. Raises KeyboardInterrupt."""
        ...


class PlainDisplay:
    """Complete lines without control characters, each after the name of its model: for pipes, files and tests."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str, style: str = "") -> None:
        self._write(printable(text))

    def show(self, turn: Turn) -> None:
        is_interrupted = False
        for model, stream in turn.streams.items():
            answer, printer = turn.answers[model], _LinePrinter(turn.answers[model], self._write)
            try:
                for _ in _updates(answer, stream):
                    printer.write()
            except KeyboardInterrupt:
                is_interrupted = True
                turn.cancel()
                _leave_if_interrupted(partial(list, _updates(answer, stream)))
            printer.write(is_end=True)
        if is_interrupted:
            raise KeyboardInterrupt

    def _write(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
        self.console.file.flush()


class _LinePrinter:
    """Writes the lines of an answer that are complete and have not been written yet."""

    def __init__(self, answer: Answer, write: Callable[[str], None]) -> None:
        self.answer, self._write = answer, write
        self._num_shown = {"reasoning": 0, "text": 0}

    def write(self, is_end: bool = False) -> None:
        """is_end: whether the last line is complete as well."""
        for kind, name in (("reasoning", f"{self.answer.model} (reasoning)"), ("text", str(self.answer.model))):
            text = str(getattr(self.answer, kind))
            start, end = self._num_shown[kind], len(text) if is_end else text.rfind("\n") + 1
            if end > start:
                for line in printable(text[start:end]).splitlines():
                    self._write(f"{name}: {line}")
                self._num_shown[kind] = end
        if is_end and self.answer.note:
            self._write(f"{self.answer.model} ({self.answer.note})")


class TerminalDisplay:
    """Both answers at once, redrawn while they grow. What a model writes cannot act on the terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str, style: str = "dim") -> None:
        self.console.print(Text(printable(text), style=style))

    def show(self, turn: Turn) -> None:
        answers, is_interrupted = list(turn.answers.values()), False
        with Live(
            get_renderable=lambda: self._cropped(answers),
            console=self.console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            readers = _Readers(turn)
            try:
                readers.wait()
            except KeyboardInterrupt:
                is_interrupted = True
                turn.cancel()
                _leave_if_interrupted(readers.wait)
        self.console.print(self._rendered(answers))
        if is_interrupted:
            raise KeyboardInterrupt

    def _rendered(self, answers: Sequence[Answer]) -> RenderableType:
        if len(answers) < 2 or self.console.width < MIN_COLUMNS:
            return Group(*(part for answer in answers for part in (_title(answer), _body(answer))))
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for _ in answers:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*map(_title, answers))
        table.add_row(*map(_body, answers))
        return table

    def _cropped(self, answers: Sequence[Answer]) -> RenderableType:
        """The last lines, as many as the terminal has: what is above them cannot be redrawn."""
        if len(answers) > 1 and self.console.width < MIN_COLUMNS:
            height = max(2, (self.console.height - 1) // len(answers))
            return Group(*(self._last_lines(self._rendered([answer]), height) for answer in answers))
        return self._last_lines(self._rendered(answers), max(2, self.console.height - 1))

    def _last_lines(self, rendered: RenderableType, height: int) -> RenderableType:
        lines = self.console.render_lines(rendered, pad=False)
        if len(lines) > height:
            lines = [lines[0], *lines[len(lines) - height + 1 :]]  # the first one has the names of the models
        ended = [segment for line in lines for segment in (*line, Segment.line())]
        return Segments(ended[:-1])


def _title(answer: Answer) -> Text:
    return Text(answer.model, style=STYLES[answer.model])


def _body(answer: Answer) -> Text:
    text = Text(overflow="fold")
    if answer.reasoning:
        text.append(printable(answer.reasoning).rstrip() + "\n", style="dim italic")
    text.append(printable(answer.text))
    if answer.note:
        text.append(
            f"{'' if text.plain.endswith('\n') or not text.plain else '\n'}({printable(answer.note)})", style="dim"
        )
    return text


def _leave_if_interrupted(wait: Callable[[], object]) -> None:
    """Waits for the end of cancelled answers. Another Ctrl-C ends the program."""
    try:
        wait()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _updates(answer: Answer, stream: GenerationStream) -> Iterator[bool]:
    """Adds the parts of a stream to its answer; yields True after each."""
    try:
        for delta in stream:
            _add(answer, delta)
            yield True
    except AlfineError as error:
        answer.error = str(error)


def _add(answer: Answer, delta: TextDelta) -> None:
    answer.text += delta.text
    answer.reasoning += delta.reasoning
    answer.num_tokens += len(delta.token_ids)
    answer.finish_reason = delta.finish_reason or answer.finish_reason


class _Readers:
    """Threads that read the streams of a turn into its answers at the same time."""

    def __init__(self, turn: Turn) -> None:
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._num_running = len(turn.streams)
        for model, stream in turn.streams.items():
            threading.Thread(target=self._read, args=(turn.answers[model], stream), daemon=True).start()

    def _read(self, answer: Answer, stream: GenerationStream) -> None:
        try:
            for _ in _updates(answer, stream):
                pass
        finally:
            self._ended.put(None)

    def wait(self) -> None:
        """Waits until all streams have ended."""
        while self._num_running:
            self._ended.get()
            self._num_running -= 1
