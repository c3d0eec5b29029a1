"""Runs unit tests on generated code in a sandbox: CPython compiled to WebAssembly (pipelines/scoring/wasm.py).

One instance runs the code and all its tests. The outcome of each test comes over a channel that the code does not know:
messages begin with a key that is computed from the code and the tests. Code that ends the program early leaves its
tests without outcome.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import marshal
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipelines.scoring.python_tests import instrument
from pipelines.scoring.wasm import run_program
from pipelines.scoring.wasm_host import Program
from pipelines.scoring.wasm_interpreter import compiled, is_compiled

MAX_CHARS = 20_000
"""Longest code, and longest tests together, that are run: parsing takes less than a second."""
MAX_MESSAGE = 300

_NO_THREADS = "RuntimeError: can't start new thread"
_STOPPED = {
    "": "the code ended the program",
    "exit": "the code ended the program",
    "instructions": "took too long",
    "memory": "used too much memory",
    "stack": "RecursionError: the stack is used up",
    "crash": "crashed the sandbox",
    "wall clock": "the machine was too slow to run it",
}


@dataclass(frozen=True)
class TestResult:
    """Outcome of the tests. `unsupported`: the sandbox could not run the code, for example because it needs threads."""

    __test__ = False  # pytest would collect the class because of its name

    passed: int
    total: int
    message: str
    unsupported: bool


def run_tests(code: str, tests: Sequence[str]) -> TestResult:
    """Runs `code`, then each of `tests` (Python source, mostly one `assert`) in its namespace, in order.

    Code and tests together are bounded by `pipelines.scoring.wasm.INSTRUCTIONS` and `MEMORY`; the test that exceeds
    them is the last to run. The output of the code is discarded. `message` names the first test that did not pass and
    its outcome, in at most 300 characters; "" if all pass. Tests that run no `assert` do not pass. The result is
    deterministic. Exceptions of the code are not propagated. Raises MachineError if the sandbox cannot be compiled.
    """
    return _cached_result(code, tuple(tests))


@functools.lru_cache(maxsize=10_000)  # equal completions of base and tuned, and repeated reports
def _cached_result(code: str, tests: tuple[str, ...]) -> TestResult:
    total = len(tests)
    if not tests:
        return TestResult(0, 0, "there are no tests", unsupported=False)
    if max(len(code), sum(map(len, tests))) > MAX_CHARS:
        return TestResult(0, total, f"code or tests exceed {MAX_CHARS} characters", unsupported=False)
    session = _TestSession(code, tests)
    stopped = run_program(Program(_driver(), session.reply))
    return session.result(stopped)


def prepare_sandbox(metrics: Iterable[str], working: Callable[[str], AbstractContextManager[None]]) -> None:
    """Loads the sandbox if one of `metrics` is unit_tests, and compiles it if the cache has none, with a progress line
    by `working` (such as `ConsoleReporter.status`). Raises MachineError if that fails."""
    if "unit_tests" in metrics:
        progress = working("Compiling the sandbox for unit tests (once, a minute or two)")
        with contextlib.nullcontext() if is_compiled() else progress:
            compiled()


@functools.cache
def _driver() -> str:
    """The driver program, in a namespace with builtins of its own."""
    text = Path(__file__).with_name("sandbox_driver.py").read_text(encoding="utf-8")
    return f"import builtins\nexec({text!r}, {{'__builtins__': dict(vars(builtins))}})"


@dataclass
class _TestSession:
    """The host's side of one run: sends code and tests once, and records the messages of the driver that begin with the
    key."""

    code: str
    tests: Sequence[str]
    code_sent: bool = False
    loaded: bool = False
    passed: int = 0
    ran: int = 0
    asserts: int = 0
    failure: str = ""
    has_excess_outcomes: bool = False
    """Whether more outcomes arrived than there are tests."""

    @property
    def key(self) -> bytes:
        """The prefix of the driver's messages. It depends only on code and tests, so that results are reproducible;
        code would have to contain its own hash to know it."""
        return hashlib.sha256(marshal.dumps(["verdict", self.code, *self.tests])).digest()[:16]

    def reply(self, message: bytes) -> bytes:
        if not self.code_sent:
            self.code_sent = True
            prefix = f"_{self.key.hex()}_"
            return marshal.dumps([self.key, prefix, self.code, [instrument(test, prefix) for test in self.tests]])
        if message.startswith(self.key):
            self._record(message[len(self.key) :].decode("utf-8", "replace"))
        return b""

    def _record(self, message: str) -> None:
        kind, outcome, text = message[:1], message[1:2], message[2:]
        failure = "used too much memory" if outcome == "m" else text
        if kind == "a":
            self.asserts = int(message[1:])
        elif kind == "t" and self.ran == len(self.tests):
            self.has_excess_outcomes = True
        elif kind == "c":
            self.loaded = outcome == "p"
            self.failure = failure
        elif outcome == "p":
            self.passed += 1
            self.ran += 1
        else:
            self._fail(failure)
            self.ran += 1

    def _fail(self, reason: str) -> None:
        test = " ".join(self.tests[self.ran].split())[: MAX_MESSAGE // 2]
        self.failure = self.failure or f"{test}: {reason}"

    def result(self, stopped: str) -> TestResult:
        """The result; `stopped` is the return value of `run_program`."""
        total = len(self.tests)
        if not self.loaded:
            self.failure = self.failure or _STOPPED[stopped]
        elif self.ran < total:
            self._fail(_STOPPED[stopped])
        elif self.has_excess_outcomes or stopped == "exit":
            self.passed, self.failure = 0, "the code interferes with its tests"
        elif self.passed == total and not self.asserts:
            self.passed, self.failure = 0, "the tests ran no assert"
        unsupported = stopped == "wall clock" or self.failure.endswith(_NO_THREADS)
        message = self.failure if len(self.failure) <= MAX_MESSAGE else self.failure[: MAX_MESSAGE - 1] + "…"
        return TestResult(self.passed, total, message, unsupported)
