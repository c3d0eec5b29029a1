"""Judge a model's code by its unit tests where it can do no harm: in CPython, in WebAssembly (pipelines/scoring/wasm.py).

One instance runs the code and all its tests. How each test ended comes over a channel that the code does not know: messages
begin with a key that is made of the code and the tests. A code that ends the program early leaves its tests without a verdict.
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
from pipelines.scoring.wasm_module import compiled, is_compiled

MAX_CHARS = 20_000
"""Longest code, and longest tests in sum, that are looked at: the parser's own time stays below a second."""
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
    """What the tests gave. `unsupported`: the sandbox could not run the code (it needs threads), which says nothing about it."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    passed: int
    total: int
    message: str
    unsupported: bool


def run_tests(code: str, tests: Sequence[str]) -> TestResult:
    """Run `code`, then each of `tests` (Python source, mostly one `assert`) in its namespace, in order.

    Code and tests together are bounded by `pipelines.scoring.wasm.INSTRUCTIONS` and `MEMORY`; what overruns is the last that is run.
    What the code prints is dropped. `message` names the first test that did not pass and what it gave, in at most 300
    characters; "" when all pass. Tests that run no `assert` do not pass. The result is the same at every call. Nothing that the
    code does is raised from here; MachineError where the sandbox cannot be compiled.
    """
    return _judged(code, tuple(tests))


@functools.lru_cache(maxsize=10_000)  # base and tuned often write the same, and a report is written more than once
def _judged(code: str, tests: tuple[str, ...]) -> TestResult:
    total = len(tests)
    if not tests:
        return TestResult(0, 0, "there are no tests", unsupported=False)
    if max(len(code), sum(map(len, tests))) > MAX_CHARS:
        return TestResult(0, total, f"code or tests exceed {MAX_CHARS} characters", unsupported=False)
    judge = _Judge(code, tests)
    stopped = run_program(Program(_driver(), judge.answer))
    return judge.result(stopped)


def prepare_sandbox(metrics: Iterable[str], working: Callable[[str], AbstractContextManager[None]]) -> None:
    """Loads the sandbox where one of `metrics` is unit_tests, and compiles it where the cache holds none, while `working` (such
    as `ConsoleReporter.working`) says so. Raises MachineError where that fails."""
    if "unit_tests" in metrics:
        said = working("Compiling the sandbox for unit tests (once, a minute or two)")
        with contextlib.nullcontext() if is_compiled() else said:
            compiled()


@functools.cache
def _driver() -> str:
    """The program inside, in a namespace whose builtins are its own."""
    text = Path(__file__).with_name("sandbox_driver.py").read_text(encoding="utf-8")
    return f"import builtins\nexec({text!r}, {{'__builtins__': dict(vars(builtins))}})"


@dataclass
class _Judge:
    """The host's side of one run: hands out code and tests once, and writes down what the program inside says with the key."""

    code: str
    tests: Sequence[str]
    handed_out: bool = False
    loaded: bool = False
    passed: int = 0
    ran: int = 0
    asserts: int = 0
    failure: str = ""
    forged: bool = False
    """More verdicts came than there are tests."""

    @property
    def key(self) -> bytes:
        """The same for the same code and tests, so that a result is; the code would have to hold its own hash to know it."""
        return hashlib.sha256(marshal.dumps(["verdict", self.code, *self.tests])).digest()[:16]

    def answer(self, message: bytes) -> bytes:
        if not self.handed_out:
            self.handed_out = True
            prefix = f"_{self.key.hex()}_"
            return marshal.dumps([self.key, prefix, self.code, [instrument(test, prefix) for test in self.tests]])
        if message.startswith(self.key):
            self._write_down(message[len(self.key) :].decode("utf-8", "replace"))
        return b""

    def _write_down(self, message: str) -> None:
        about, outcome, text = message[:1], message[1:2], message[2:]
        failure = "used too much memory" if outcome == "m" else text
        if about == "a":
            self.asserts = int(message[1:])
        elif about == "t" and self.ran == len(self.tests):
            self.forged = True
        elif about == "c":
            self.loaded = outcome == "p"
            self.failure = failure
        elif outcome == "p":
            self.passed += 1
            self.ran += 1
        else:
            self._fail(failure)
            self.ran += 1

    def _fail(self, what: str) -> None:
        test = " ".join(self.tests[self.ran].split())[: MAX_MESSAGE // 2]
        self.failure = self.failure or f"{test}: {what}"

    def result(self, stopped: str) -> TestResult:
        """The verdict, where the program ended as `run_program` says."""
        total = len(self.tests)
        if not self.loaded:
            self.failure = self.failure or _STOPPED[stopped]
        elif self.ran < total:
            self._fail(_STOPPED[stopped])
        elif self.forged or stopped == "exit":
            self.passed, self.failure = 0, "the code interferes with its tests"
        elif self.passed == total and not self.asserts:
            self.passed, self.failure = 0, "the tests ran no assert"
        unsupported = stopped == "wall clock" or self.failure.endswith(_NO_THREADS)
        message = self.failure if len(self.failure) <= MAX_MESSAGE else self.failure[: MAX_MESSAGE - 1] + "…"
        return TestResult(self.passed, total, message, unsupported)
