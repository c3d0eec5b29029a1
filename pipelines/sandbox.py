"""Run a model's code against its tests where it can do no harm.

The code runs in Monty (`pydantic_monty`), a Python interpreter written in Rust that knows no files, network or
processes, in a process of its own that lives for one call. Time and memory are bounded inside the interpreter
and once more from outside: a worker that overruns is killed. This process only *compiles* the code.

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
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_monty import MontyError, MontySession

MAX_CHARS = 20_000
"""Longest code, and longest tests in sum, that are looked at. Keeps the parser's own time below a second."""
MAX_MESSAGE = 300

_GRACE = 0.25  # seconds after the time limit until the worker is killed: one huge multiplication never looks up
_LANGUAGE_GAP = "The monty syntax parser does not yet support "
_OTHER_GAPS = ("not yet support", "Internal error in monty", "'typing._SpecialForm' object is not subscriptable")
_MODULES = frozenset(
    "asyncio base64 binascii bisect collections copy csv dataclasses datetime decimal functools hashlib itertools "
    "json math os pathlib posixpath random re sys time tomllib typing unicodedata".split()
)
"""The modules that Monty has. Only these are ever imported here, to see whether CPython's have more in them."""
_KEYBOARD = frozenset({"input", "exit", "quit", "help", "breakpoint"})
"""Builtins that Monty leaves out and that no tested function should need: using them is a failure."""

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(?P<block>.*?)(?P<end>^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_CODE_START = re.compile(r"^(?:def|async def|class|import|from)\s|^@", re.MULTILINE)


@dataclass(frozen=True)
class TestResult:
    """What the tests gave. `unsupported`: the sandbox lacks a feature, and no test that could be run failed."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    passed: int
    total: int
    message: str
    unsupported: bool


def run_tests(
    code: str, tests: Sequence[str], *, seconds: float = 2.0, memory_mb: int = 64
) -> TestResult:
    """Run `code`, then each of `tests` (Python source, mostly one `assert`) in its namespace, one after the other.

    `seconds` bound the code and each test alone, and the first one to overrun is the last one run, so a call
    takes about `2 * seconds` at worst when the tests that pass are quick. `memory_mb` bounds the sandbox's heap
    (its process reaches about twice that). The sandbox's output is dropped. `message` tells the first test that
    did not pass and what it gave, in at most 300 characters; "" when all pass. Nothing that the code does is
    raised from here.
    """
    total = len(tests)

    def stopped(message: str, *, unsupported: bool = False) -> TestResult:
        return TestResult(0, total, _shorten(message), unsupported)

    if not tests:
        return stopped("there are no tests")
    if max(len(code), sum(map(len, tests))) > MAX_CHARS:
        return stopped(f"code or tests are longer than {MAX_CHARS} characters")
    if error := _syntax_error(code):
        return stopped(error)

    passed, failure, gap = 0, "", ""
    with _session(seconds, memory_mb) as session:
        outcome = _feed(session, code, code)
        if outcome.gap or outcome.failure:
            return stopped(outcome.gap or outcome.failure, unsupported=bool(outcome.gap))
        for test in tests:
            outcome = _run_test(session, code, test)
            passed += not (outcome.gap or outcome.failure)
            gap = gap or outcome.gap
            failure = failure or outcome.failure
            if outcome.lost:
                break
    return TestResult(passed, total, _shorten(failure or gap), unsupported=bool(gap and not failure))


def extract_code(completion: str) -> str:
    """The Python in a completion: its first fenced block, else from the first line that begins a definition or an
    import to the end of what parses, else the text as it is."""
    starts = [match.start() for match in _CODE_START.finditer(completion)]
    fence = _FENCE.search(completion)
    # A lone fence below code closes a block that the prompt opened.
    if fence and (fence["end"] or not starts or starts[0] > fence.start()):
        return _dedent(fence["block"])
    if len(completion) > MAX_CHARS or _parse(completion) is not None:
        return completion
    for start in starts:
        if code := _longest_that_parses(completion[start:].splitlines()):
            return code
    return completion[starts[0] :] if starts else completion


def split_tests(text: str) -> list[str]:
    """Cut a text of tests into one string per `assert`, each with the statements that prepare it. Text that does
    not parse comes back line by line."""
    tree = _parse(text)
    if tree is None:
        return [line for line in text.splitlines() if line.strip()]
    tests, begin = [], 0
    lines = text.splitlines()
    for number, node in enumerate(tree.body, start=1):
        if isinstance(node, ast.Assert) or number == len(tree.body):
            end = node.end_lineno or node.lineno
            if block := "\n".join(lines[begin:end]).strip("\n"):  # "": a second assert on the same line
                tests.append(block)
            begin = max(begin, end)
    return tests


@dataclass(frozen=True)
class _Outcome:
    failure: str = ""
    gap: str = ""
    lost: bool = False  # the session is gone, or cannot be trusted any more


@contextmanager
def _session(seconds: float, memory_mb: int) -> Iterator[MontySession]:
    """A fresh Monty process (about 2 ms) with nothing in it."""
    from pydantic_monty import Monty

    pool = Monty(min_processes=1, max_processes=1, feed_duration_limit_grace=_GRACE)
    with _stderr_to_nowhere():
        pool.__enter__()
    try:
        with pool.checkout(
            limits={"max_feed_duration_secs": seconds, "max_memory": memory_mb * 2**20},
            os_policy={"sleep": "zero", "random_start": {"seed": 0}},
        ) as session:
            yield session
    finally:
        pool.__exit__(None, None, None)


@contextmanager
def _stderr_to_nowhere() -> Iterator[None]:
    """A Monty process inherits our stderr and writes a line there when it runs out of memory: give it another."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _run_test(session: MontySession, code: str, test: str) -> _Outcome:
    name = " ".join(test.split())[: MAX_MESSAGE // 2]
    if error := _syntax_error(test):
        return _Outcome(failure=f"{name}: {error}")
    outcome = _feed(session, test, code + "\n" + test)
    if not outcome.failure:
        return outcome
    return _Outcome(failure=f"{name}: {outcome.failure}", lost=outcome.lost)


def _feed(session: MontySession, source: str, whole: str) -> _Outcome:
    """Run `source`, which compiles; `whole` is all the source that the session has seen."""
    from pydantic_monty import MontyError

    try:
        # `None` as the last value: a big one would travel to this process.
        session.feed_run(source + "\nNone", print_callback=lambda stream, text: None)
    except MontyError as error:
        return _explain(error, whole)
    return _Outcome()


def _explain(error: MontyError, source: str) -> _Outcome:
    from pydantic_monty import MontyCrashedError, MontyRuntimeError

    if isinstance(error, MontyCrashedError):
        return _Outcome(failure="took too long" if error.timed_out else "crashed the sandbox", lost=True)
    raised = error.exception()
    if isinstance(raised, TimeoutError):
        return _Outcome(failure="took too long", lost=True)
    if isinstance(raised, MemoryError):
        return _Outcome(failure="used too much memory", lost=True)
    if gap := _gap(raised, source):
        return _Outcome(gap=gap)
    lines = str(raised).splitlines()
    last = lines[-1] if lines else ""
    if isinstance(error, MontyRuntimeError) and isinstance(raised, AssertionError) and len(error.traceback()) == 1:
        # Monty writes the values into the message: "assert 5 == 4".
        left, equals, _ = last.removeprefix("assert ").rpartition(" == ")
        return _Outcome(failure=f"got {left}" if equals else last or "not true")
    return _Outcome(failure=f"{type(raised).__name__}: {last}" if last else type(raised).__name__)


def _gap(raised: BaseException, source: str) -> str:
    """What Monty lacks and CPython has, if that is why `source`, which CPython compiles, failed; else ""."""
    text = str(raised)
    if isinstance(raised, SyntaxError):
        return f"syntax ({text.splitlines()[0]})" if text else "syntax"
    if text.startswith(_LANGUAGE_GAP):
        return text.removeprefix(_LANGUAGE_GAP)
    if any(words in text for words in _OTHER_GAPS):
        return text
    if match := re.match(r"name '(\w+)' is not defined", text):
        return match[1] if hasattr(builtins, match[1]) and match[1] not in _KEYBOARD else ""
    if match := re.match(r"No module named '(\w+)", text):
        return f"import {match[1]}" if match[1] in sys.stdlib_module_names else ""
    if match := re.match(r"cannot import name '(?P<name>\w+)' from '(?P<owner>\w+)'", text):
        return _missing(match["owner"], match["name"])
    if match := re.match(r"(?:type object |module )?'(?P<owner>\w+)'.* has no attribute '(?P<name>\w+)'", text):
        return _missing(match["owner"], match["name"])
    if text == "'list' object is not an iterator" and "GeneratorExp" in _node_kinds(source):
        return "next() of a generator expression"
    return ""


def _missing(owner: str, name: str) -> str:
    """`owner.name` if CPython has it, with `owner` a module that Monty has too or a builtin type; else ""."""
    place = importlib.import_module(owner) if owner in _MODULES else getattr(builtins, owner, None)
    return f"{owner}.{name}" if place is not None and hasattr(place, name) else ""


def _node_kinds(source: str) -> set[str]:
    tree = _parse(source)
    return {type(node).__name__ for node in ast.walk(tree)} if tree else set()


def _syntax_error(source: str) -> str:
    """What CPython's compiler says against `source`; "" if nothing. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<completion>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:  # surrogates, zero bytes, nesting beyond all measure
        return f"SyntaxError: {error}"
    return ""


def _parse(source: str) -> ast.Module | None:
    return tree if isinstance(tree := _parse_or_line(source), ast.Module) else None


def _parse_or_line(source: str) -> ast.Module | int:
    """The syntax tree, or the line at which the parser gave up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1


def _longest_that_parses(lines: Sequence[str]) -> str:
    end = len(lines)
    while end > 0:
        code = "\n".join(lines[:end])
        found = _parse_or_line(code)
        if isinstance(found, ast.Module):
            return code.rstrip() if found.body else ""
        end = min(end - 1, found)  # nothing after the line of the error can mend it
    return ""


def _dedent(block: str) -> str:
    import textwrap

    return textwrap.dedent(block).strip("\n")


def _shorten(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
