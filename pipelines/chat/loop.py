"""The loop of a chat: a line of the user, the answers to it, until the input ends."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console

from pipelines.chat.commands import run_command
from pipelines.chat.display import INTERRUPTED, Display, PlainDisplay, TerminalDisplay
from pipelines.chat.session import ChatSession, Turn
from pipelines.errors import AlfineError, DataError

CONTINUATION = "\\"
"""At the end of a line in a terminal: the next line belongs to the same prompt."""
BYTE_ORDER_MARK = "\ufeff"


class LineReader(Protocol):
    """Reads the lines of the user."""

    def read(self, prompt: str) -> str | None:
        """The next line, without its end; None at the end of the input. Raises DataError for one that is not text."""
        ...


class TerminalReader:
    """Lines typed in a terminal, with editing and a history. A backslash at the end continues a line."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then has a history; it is missing on some systems)

    def read(self, prompt: str) -> str | None:
        parts: list[str] = []
        while True:
            try:
                line = _input("... " if parts else f"{prompt}> ")
            except EOFError:
                return "\n".join(parts) if parts else None
            except UnicodeDecodeError:
                raise DataError("the line is not in the terminal's encoding; it was not sent") from None
            parts.append(line.removesuffix(CONTINUATION))
            if not line.endswith(CONTINUATION):
                return _checked("\n".join(parts))


def _input(prompt: str) -> str:
    """A line typed after the prompt, which is no part of an output that goes to a file or a pipe."""
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


class StreamReader:
    """Lines of a pipe or a file, in UTF-8."""

    def __init__(self, stream: Any) -> None:
        self._lines: Iterator[str] = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")
        self._number = 0

    def read(self, prompt: str) -> str | None:
        line = next(self._lines, None)
        if line is None:
            return None
        self._number += 1
        text = line.removesuffix("\n")
        return _checked(text.removeprefix(BYTE_ORDER_MARK) if self._number == 1 else text, f"line {self._number}")


def _checked(text: str, name: str = "the line") -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} is not UTF-8; it was not sent") from None
    return text


class ChatLoop:
    """Reads lines and shows answers."""

    def __init__(self, session: ChatSession, reader: LineReader, display: Display) -> None:
        self.session, self.reader, self.display = session, reader, display

    def run(self, first_task: str | None = None) -> int:
        """Runs until the input ends. Returns the exit code. first_task: a task whose columns are asked for first."""
        is_interrupted = False
        pending = f"/task {first_task}" if first_task else None
        while True:
            try:
                line = pending or self.reader.read(self.session.task or "")
                pending, is_interrupted = None, False
                if line is None or not self._handle(line):
                    return 0
            except AlfineError as error:
                self.display.line(f"error: {error}", "red")
            except KeyboardInterrupt:
                if is_interrupted:
                    return INTERRUPTED
                is_interrupted, pending = True, None
                self.display.line("\n(Ctrl-C again, or /quit, to leave)")

    def _handle(self, line: str) -> bool:
        """Answers a line. Returns whether the chat goes on."""
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._answer(self.session.ask(line[1:] if line.startswith("//") else line))
            return True
        outcome = run_command(line, self.session, self.reader.read)
        if outcome.text:
            self.display.line(outcome.text)
        if outcome.turn is not None:
            self.display.line(outcome.turn.prompt)
            self._answer(outcome.turn)
        return not outcome.ends

    def _answer(self, turn: Turn) -> None:
        try:
            self.display.show(turn)
        finally:
            turn.cancel()  # without an effect on answers that have ended
            self.session.keep(turn)


def run_chat(session: ChatSession, greeting: str, first_task: str | None = None) -> int:
    """Chats on the standard input and output. Returns the exit code."""
    console = Console(highlight=False)
    is_terminal = console.is_terminal and sys.stdout.isatty() and not console.is_dumb_terminal
    display: Display = TerminalDisplay(console) if is_terminal else PlainDisplay(console)
    reader = TerminalReader() if sys.stdin.isatty() else StreamReader(sys.stdin.buffer)
    display.line(greeting)
    return ChatLoop(session, reader, display).run(first_task)
