"""A class in a process of its own."""

import os
import time

import psutil
import pytest

from pipelines.errors import RunError
from pipelines.evaluation.engine_process import EngineProcess

ENGINE = """
import os, signal, subprocess, sys

class Engine:
    def __init__(self, word):
        print("printed by a library")
        if word == "bad":
            print("the last line", file=sys.stderr)
            raise ValueError("no such word")
        self.word = word
        self.child = subprocess.Popen(["sleep", "600"])

    def describe(self):
        return {"child": self.child.pid, "word": self.word}

    def repeat(self, times):
        for _ in range(times):
            yield {"progress": 1}
        yield {"result": [self.word] * times}

    def crash(self):
        print("TypeError: an error before the end", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)

    def fail(self):
        try:
            raise KeyError("the cause")
        finally:
            print("INFO a line that is logged at the end", file=sys.stderr)

    def linger(self):
        yield {"progress": 1}
        self.wait()

    def wait(self):
        import time
        time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "engine.py").write_text(ENGINE)

    def start(word):
        return EngineProcess(tmp_path / "engine.py", "Engine", {"word": word}, lambda reason: f"failed ({reason})")

    return start


def is_running(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.01)
    return True


def test_methods_are_called_and_report_progress(start):
    counts = []
    with start("a") as engine:
        assert engine.description["word"] == "a"
        assert engine.call("repeat", counts.append, times=3) == ["a"] * 3 and counts == [1, 1, 1]
        child = engine.description["child"]
    assert engine._process.returncode == 0 and not is_running(child)


@pytest.mark.parametrize(("method", "reason"), [("crash", "it crashed, SIGSEGV"), ("fail", "KeyError: 'the cause'")])
def test_the_cause_of_a_failure_is_named_and_no_process_is_left(start, method, reason):
    with start("a") as engine, pytest.raises(RunError, match=rf"failed \({reason}\)"):
        engine.call(method)
    assert not is_running(engine.description["child"])


def test_a_constructor_that_fails_is_an_error(start):
    with pytest.raises(RunError, match=r"failed \(ValueError: no such word\)"):
        start("bad")


def test_an_interrupt_ends_the_engine_at_once(start):
    def interrupt(count):
        raise KeyboardInterrupt

    with start("a") as engine, pytest.raises(KeyboardInterrupt):
        started = time.monotonic()
        engine.call("linger", interrupt)
    assert time.monotonic() - started < 5 and not is_running(engine.description["child"])


def test_an_engine_that_does_not_end_is_ended(start, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.engine_process.CLOSING_SECONDS", 0.1)
    engine = start("a")
    engine._process.stdin.write('{"call": "wait"}\n')
    engine._process.stdin.flush()
    engine.close()
    assert engine._process.returncode and not is_running(engine.description["child"])
    assert not os.path.exists(engine._folder.name)
