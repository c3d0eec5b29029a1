"""Run a model's code against its tests where it can do no harm.

The code runs in Monty (`pydantic_monty`), a Python interpreter written in Rust that knows no files, network
or processes, in a process of its own that lives for one call. Time and memory are bounded inside the
interpreter, and a worker that overruns nevertheless is killed. This process only *compiles* the code.

Monty knows a part of Python (no `yield`, no inheritance, no `heapq`). Code that CPython would run and Monty
cannot is reported as unsupported, which says nothing about the model; all other failures are the code's own.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_monty import MontyError, MontySession

MAX_CHARS = 20_000
"""Longest code, and longest tests in sum, that are looked at: the parser's own time stays below a second."""
MAX_MESSAGE = 300

# Seconds after the time limit until the worker is killed; one huge multiplication does not look at the clock.
_GRACE = 0.25

# What Monty lacks and CPython has.
_SYNTAX_GAP = "The monty syntax parser does not yet support "
_OTHER_GAPS = re.compile(r"not yet support|Internal error in monty|'typing\._SpecialForm' object is not subscriptable")
_METHODS_IGNORED = {"__len__", "__bool__", "__lt__", "__le__", "__gt__", "__ge__", "__ne__", "__getattr__"}
# The modules that Monty has; only these are imported here, to see whether CPython's have more in them.
# fmt: off
_MODULES = {
    "asyncio", "base64", "binascii", "bisect", "collections", "copy", "csv", "dataclasses", "datetime",
    "decimal", "functools", "hashlib", "itertools", "json", "math", "os", "pathlib", "posixpath", "random",
    "re", "sys", "time", "tomllib", "typing", "unicodedata",
}
# fmt: on
# Builtins that wait for a person or end the program: without them in the sandbox, using them is a failure.
_INTERACTIVE = {"input", "exit", "quit", "help", "breakpoint"}

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(?P<block>.*?)(?P<end>^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_ATTEMPTS = 10  # at finding code in a text that makes the parser stumble again and again
_CODE_START = re.compile(r"^(?:(?:def|async def|class|import|from)\s|@)", re.MULTILINE)


@dataclass(frozen=True)
class TestResult:
    """What the tests gave. `unsupported`: the sandbox lacks a feature, and no test it could run failed."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    passed: int
    total: int
    message: str
    unsupported: bool


def run_tests(code: str, tests: Sequence[str], *, seconds: float = 2.0, memory_mb: int = 64) -> TestResult:
    """Run `code`, then each of `tests` (Python source, mostly one `assert`) in its namespace, in order.

    `seconds` bound the code, and each test alone; whatever overruns is the last that is run, so one call
    wastes that time once. `memory_mb` bounds the heap (the worker process reaches about twice that). What the
    code prints is dropped. `message` names the first test that did not pass and what it gave, or the feature
    that the sandbox lacks, in at most 300 characters; "" when all pass. Nothing that the code does is raised
    from here.
    """
    total = len(tests)
    if not tests:
        return TestResult(0, 0, "there are no tests", unsupported=False)
    if max(len(code), sum(map(len, tests))) > MAX_CHARS:
        return TestResult(0, total, f"code or tests exceed {MAX_CHARS} characters", unsupported=False)

    passed, failure, gap = 0, "", ""
    with _session(seconds, memory_mb) as session:
        loaded = _feed(session, code)
        if not loaded.passed:
            return TestResult(0, total, _shorten(loaded.failure or loaded.gap), unsupported=bool(loaded.gap))
        for test in tests:
            outcome = _feed(session, test, before=code)
            passed += outcome.passed
            gap = gap or outcome.gap
            if outcome.failure:
                failure = failure or f"{' '.join(test.split())[: MAX_MESSAGE // 2]}: {outcome.failure}"
            if outcome.lost:
                break
    return TestResult(passed, total, _shorten(failure or gap), unsupported=bool(gap and not failure))


def extract_code(completion: str) -> str:
    """The Python in a completion: its first fenced block; else from the first line that begins a definition
    or an import to the end of what parses; else the text as it is."""
    starts = [match.start() for match in _CODE_START.finditer(completion)]
    fence = _FENCE.search(completion)
    # A single fence below code closes a block that the prompt had opened.
    if fence and (fence["end"] or not starts or fence.start() < starts[0]):
        return textwrap.dedent(fence["block"]).strip("\n")
    if len(completion) > MAX_CHARS or isinstance(_parse(completion), ast.Module):
        return completion
    for start in starts[:_ATTEMPTS]:
        if code := _longest_that_parses(completion[start:]):
            return code
    return completion[starts[0] :] if starts else completion


def split_tests(text: str) -> list[str]:
    """Cut a text of tests into one string per top-level `assert`, each with the statements that prepare it.
    Text that does not parse comes back line by line."""
    tree, lines = _parse(text), _lines(text)
    if not isinstance(tree, ast.Module):
        return [line for line in lines if line.strip()]
    tests, begin = [], 0
    for node in tree.body:
        end = node.end_lineno or node.lineno
        if (isinstance(node, ast.Assert) or node is tree.body[-1]) and end > begin:
            tests.append("\n".join(lines[begin:end]).strip("\n"))
            begin = end
    return tests


@dataclass(frozen=True)
class _Outcome:
    failure: str = ""
    gap: str = ""
    lost: bool = False
    """The worker is gone, or was stopped in the middle of something and cannot be trusted any more."""

    @property
    def passed(self) -> bool:
        return not (self.failure or self.gap)


@contextmanager
def _session(seconds: float, memory_mb: int) -> Iterator[MontySession]:
    """A new Monty process (about 2 ms) with nothing in it."""
    from pydantic_monty import Monty

    with ExitStack() as stack:
        with _stderr_to_nowhere():
            pool = stack.enter_context(Monty(min_processes=1, max_processes=1, feed_duration_limit_grace=_GRACE))
        yield stack.enter_context(
            pool.checkout(
                limits={"max_feed_duration_secs": seconds, "max_memory": memory_mb * 2**20},
                os_policy={"sleep": "zero", "random_start": {"seed": 0}},
            )
        )


@contextmanager
def _stderr_to_nowhere() -> Iterator[None]:
    """A Monty process that is started in here does not write its "allocation exceeds …" to our terminal."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _feed(session: MontySession, source: str, *, before: str = "") -> _Outcome:
    """Run `source` in a session that has run `before`."""
    from pydantic_monty import MontyError

    if error := _syntax_error(source):
        return _Outcome(failure=error)
    try:
        # The last value would travel to this process, however big: make it None.
        session.feed_run(source + "\nNone", print_callback=lambda stream, text: None)
    except MontyError as error_raised:
        return _explain(error_raised, before + "\n" + source)
    return _Outcome()


def _explain(error: MontyError, source: str) -> _Outcome:
    """Why `source`, which CPython compiles, stopped."""
    from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

    raised = error.exception()
    text = str(raised)
    if isinstance(error, MontySyntaxError):
        return _Outcome(gap=f"syntax: {text}")
    if isinstance(raised, TimeoutError) or (isinstance(error, MontyCrashedError) and error.timed_out):
        return _Outcome(failure="took too long", lost=True)
    if isinstance(raised, MemoryError):
        return _Outcome(failure="used too much memory", lost=True)
    if isinstance(error, MontyCrashedError):
        return _Outcome(failure="crashed the sandbox", lost=True)
    if gap := _gap(text, source) or _silent_gap(text, source):
        return _Outcome(gap=gap)
    last_line = (text.splitlines() or [""])[-1]
    frames = error.traceback() if isinstance(error, MontyRuntimeError) else []
    if isinstance(raised, AssertionError) and len(frames) == 1:
        # The test's own assert. Monty puts the values into the message: "assert 5 == 4".
        got, equals, _ = last_line.removeprefix("assert ").rpartition(" == ")
        return _Outcome(failure=f"got {got}" if equals else last_line or "not true")
    return _Outcome(failure=f"{type(raised).__name__}: {last_line}".removesuffix(": "))


def _gap(text: str, source: str) -> str:
    """What Monty lacks, if that is why `source` raised an error that says `text`; else ""."""
    if text and text in source:
        return ""  # the code's own words
    if _OTHER_GAPS.search(text):
        return text.removeprefix(_SYNTAX_GAP)
    if match := re.match(r"name '(\w+)' is not defined", text):
        return match[1] if hasattr(builtins, match[1]) and match[1] not in _INTERACTIVE else ""
    if match := re.match(r"No module named '(\w+)", text):
        return f"import {match[1]}" if match[1] in sys.stdlib_module_names else ""
    if match := re.match(r"cannot import name '(?P<name>\w+)' from '(?P<owner>\w+)'", text) or re.match(
        r"(?:type object |module )?'(?P<owner>\w+)'(?: object)? has no attribute '(?P<name>\w+)'", text
    ):
        return _missing(match["owner"], match["name"])
    return ""


def _silent_gap(text: str, source: str) -> str:
    """What Monty takes for something else without a word, so that any failure of `source` says nothing."""
    tree = _parse(source)
    nodes = list(ast.walk(tree)) if isinstance(tree, ast.Module) else []
    generators = any(isinstance(node, ast.GeneratorExp) for node in nodes)
    if generators and text == "'list' object is not an iterator":
        return "next() of a generator expression"
    ignored = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} & _METHODS_IGNORED
    return f"the special method {min(ignored)}" if ignored else ""


def _missing(owner: str, name: str) -> str:
    """`owner.name` if CPython has it and `owner` is a module that Monty has or a builtin type; else ""."""
    place = importlib.import_module(owner) if owner in _MODULES else getattr(builtins, owner, None)
    return f"{owner}.{name}" if place is not None and hasattr(place, name) else ""


def _syntax_error(source: str) -> str:
    """What CPython's compiler says against `source`, "" if nothing. It is not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<completion>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:  # half a surrogate pair; endless nesting
        return f"SyntaxError: {error}"
    return ""


def _parse(source: str) -> ast.Module | int:
    """The syntax tree, or the number of the line where the parser gave up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1


def _longest_that_parses(text: str) -> str:
    """The most lines from the first on that are Python; "" if none are found within a few attempts."""
    lines = _lines(text)
    for _ in range(_ATTEMPTS):
        code = "\n".join(lines).rstrip()
        parsed = _parse(code)
        if isinstance(parsed, ast.Module):
            return code
        lines = lines[: min(len(lines) - 1, parsed)]  # no line below the error can mend it
    return ""


def _lines(text: str) -> list[str]:
    """As the parser counts them: `str.splitlines` also splits at characters that a string may hold."""
    return re.split(r"\r\n?|\n", text)


def _shorten(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
