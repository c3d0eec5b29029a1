"""Progress in a log: complete lines at regular intervals, from start to end of each stage; progress bars in a
terminal."""

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.console.activity import (
    HEARTBEAT_INTERVAL_S,
    Activity,
    BestEffortStream,
    Heartbeat,
    current_state,
    supports_progress_bars,
    track_activity,
)
from pipelines.console.plain_text import duration, rate, replace_unencodable
from pipelines.console.reporter import ConsoleReporter

ROOT = Path(__file__).parents[2]
FAST = 0.05
"""Seconds between the lines of a heartbeat that the tests wait for."""


@pytest.fixture(autouse=True)
def environment_without_overrides(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def lines_of(work, every=1000.0, clock=time.monotonic):
    """The lines of a reporter without a terminal while work(reporter) runs."""
    out = io.StringIO()
    work(ConsoleReporter(Console(file=out), Heartbeat(every, clock)))
    return out.getvalue().splitlines()


def test_a_stage_has_a_line_at_its_start_and_end():
    clock = Clock()

    def work(reporter):
        with reporter.status("Preparing rows"):
            clock.now += 95

    assert lines_of(work, clock=clock) == ["Preparing rows: started", "Preparing rows: done in 1 min 35 s"]


def test_a_counted_stage_and_a_training():
    clock = Clock()

    def work(reporter):
        with reporter.progress("Base completions", 1200, "rows") as progress:
            progress(1200)
        with reporter.training_steps("Training") as report:
            clock.now += 60
            report(101, 101, 0.5123)

    assert lines_of(work, clock=clock) == [
        "Base completions: started, 1,200 rows",
        "Base completions: done in 0.0 s, 1,200/1,200 rows",
        "Training: started",
        "Training: done in 1 min 0 s, 101/101 steps, loss 0.512",
    ]


def test_an_interrupted_stage_has_a_line_at_its_end():
    def work(reporter):
        with contextlib.suppress(KeyError), reporter.status("Report"):
            raise KeyError("x")

    assert lines_of(work)[-1].startswith("Report: interrupted after 0.")


def test_the_state_of_a_training():
    clock = Clock()
    with track_activity("Training", None, "steps", clock) as training:
        training.note = "starting Ludwig"
        clock.now = 40
        assert current_state() == "Training: 40 s so far, starting Ludwig"
        training.reach(50, 101)  # from a checkpoint: what was done before does not count for the rate
        clock.now = 100
        training.reach(80, 101)
        training.note = "loss 1.234"
        assert current_state() == "Training: 80/101 steps after 1 min 40 s, 30.0/min, 42 s left, loss 1.234"
        with track_activity("the Fisher information", 512) as inner:
            inner.advance(128)
            assert current_state().endswith("loss 1.234; the Fisher information: 128/512 rows")
    assert current_state() == "alfine: still running"


def test_the_heartbeat_waits_for_its_interval_and_for_silence():
    clock, lines = Clock(), []
    heartbeat = Heartbeat(30, clock)
    for seconds, expected in (
        (29, False),
        (30, True),
        (59, False),
        (60, True),
        (75, "other"),
        (100, False),
        (105, True),
    ):
        clock.now, before = seconds, len(lines)
        if expected == "other":
            heartbeat.reset()
            continue
        heartbeat.beat(lines.append)
        assert len(lines) == before + expected, seconds
    assert HEARTBEAT_INTERVAL_S == 30


def test_the_heartbeat_runs_while_nothing_is_reported():
    def work(reporter):
        with reporter.status("Loading the base model"):
            time.sleep(8 * FAST)

    lines = lines_of(work, FAST)
    assert 4 <= len(lines) <= 10
    assert all(re.fullmatch(r"Loading the base model: 0\.\d s so far", line) for line in lines[1:-1])


def test_progress_between_two_beats_writes_no_line():
    def work(reporter):
        with reporter.training_steps("Training") as report:
            for step in range(10_000):
                report(step, 10_000, 1.0)

    assert len(lines_of(work)) == 2


def test_a_paused_heartbeat_writes_nothing():
    now = [0.0]
    heartbeat, lines = Heartbeat(30, lambda: now[0]), []
    with heartbeat.paused():
        now[0] = 100
        heartbeat.beat(lines.append)
    heartbeat.beat(lines.append)
    assert lines == []
    now[0] = 131
    heartbeat.beat(lines.append)
    assert len(lines) == 1


def test_the_heartbeat_between_two_stages():
    out = io.StringIO()
    heartbeat = Heartbeat(FAST)
    with heartbeat.running(lambda line: out.write(line + "\n")), track_activity("reading the data files"):
        time.sleep(4 * FAST)
    assert out.getvalue().startswith("reading the data files: 0.")


def test_a_nested_heartbeat_has_no_effect():
    lines = []
    heartbeat = Heartbeat(FAST)
    with heartbeat.running(lines.append), heartbeat.running(lines.append), track_activity("x"):
        time.sleep(3.5 * FAST)
    assert 1 <= len(lines) <= 3


def test_a_message_is_one_line_without_control_characters():
    def work(reporter):
        reporter.warn("one\ntwo \x1b[2J \u202e [red] :bomb: " + "long " * 60)
        with reporter.status("Base model a\rb\x07"):
            pass

    lines = lines_of(work)
    assert len(lines) == 3 and lines[0].startswith("warning: one two ␛[2J ⟨U+202E⟩ [red] :bomb: long")
    assert all(line.isprintable() for line in lines)


CHILD = """
import sys, time
from pipelines.console.activity import Heartbeat
from pipelines.console.reporter import ConsoleReporter
reporter = ConsoleReporter(heartbeat=Heartbeat(0.1))
reporter.warn("look here")
with reporter.progress("Base completions", 8, "rows") as progress:
    progress(2)
    time.sleep(float(sys.argv[1]))
"""


def child(seconds, stderr, **environment):
    """A process with a stage of so many seconds, its stderr going to `stderr`."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(seconds)], stderr=stderr, env=variables)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}], ids=str)
def test_a_log_file_has_plain_lines(tmp_path, environment):
    with (tmp_path / "log").open("wb") as log:
        assert child(0.5, log, **environment).wait() == 0
    raw = (tmp_path / "log").read_bytes()
    lines = raw.decode().split("\n")
    assert lines[0] == "warning: look here" and lines[1] == "Base completions: started, 8 rows"
    assert re.fullmatch(r"Base completions: 2/8 rows after 0\.\d s, [\d.]+/s, [\d.]+ s left", lines[2])
    assert "\x1b" not in raw.decode() and "\r" not in raw.decode()


def test_force_color_adds_color_but_no_cursor_movement(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        assert child(0.3, log, FORCE_COLOR="1").wait() == 0
    text = (tmp_path / "log").read_text()
    assert "\x1b[33mwarning" in text and "Base completions: started" in text
    assert not re.search(r"\x1b\[[?\d;]*[A-Za-ln-z]", text) and "\r" not in text


def test_a_killed_process_loses_no_line(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process = child(60, log)
        deadline = time.monotonic() + 30
        while (tmp_path / "log").read_bytes().count(b"\n") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "log").read_bytes().endswith(b"left\n")


def terminal_output(seconds, **environment):
    terminal, child_end = pty.openpty()
    process = child(seconds, child_end, **environment)
    os.close(child_end)
    parts = []
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_a_terminal_has_progress_bars():
    text = terminal_output(0.3)
    assert "\x1b[" in text and "━" in text and "2/8 rows" in text and "started" not in text


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "1"}], ids=str)
def test_a_dumb_terminal_or_ci_log_has_lines(environment):
    text = terminal_output(0.3, **environment)
    assert "Base completions: started, 8 rows" in text and "\x1b[2K" not in text and "\x1b[?25l" not in text


def test_a_closed_pipe_does_not_end_the_program():
    process = child(0.5, subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait() == 0


def test_a_full_disk_does_not_end_the_program():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        BestEffortStream(full).write_line("x")
        ConsoleReporter(Console(file=BestEffortStream(full))).warn("x")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize(
    ("variables", "is_terminal", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"CI": "true"}, True, False),
        ({"CI": "false", "TERM": "xterm"}, True, True),
        ({}, False, False),
    ],
)
def test_streams_that_support_progress_bars(monkeypatch, variables, is_terminal, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    assert supports_progress_bars(stream) is expected and supports_progress_bars(None) is False


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_characters_that_an_encoding_lacks_are_replaced(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    replace_unencodable(stream)
    print("80 … 90, −3.1 → ▁tea ⟨U+202E⟩ 中 \ud800 😀", file=stream)
    text = raw.getvalue().decode(encoding)
    assert "-3.1" in text and "\\u4e2d" in text and "\\ud800" in text and "\\U0001f600" in text
    if encoding == "ascii":
        assert text.startswith("80 ... 90, -3.1 -> _tea <U+202E>")


def test_low_rates_and_long_durations():
    assert [rate(value) for value in (3.21, 0.2, 0.001)] == ["3.2/s", "12.0/min", "3.6/h"]
    assert duration(3725) == "1 h 2 min"
    clock = Clock()
    activity = Activity("x", "rows", 10, clock)
    assert activity.rate is None
    clock.now, activity.done = 100, 5
    assert activity.rate == 0.05


def test_progress_bars_of_an_ascii_terminal():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    replace_unencodable(out)
    reporter = ConsoleReporter(Console(file=out, force_terminal=True, width=100))
    with reporter.progress("Base completions", 8, "rows") as progress:
        progress(8)
    assert "8/8 rows" in out.buffer.getvalue().decode("ascii")


def test_two_activities_with_the_same_title():
    clock = Clock()
    with track_activity("x", clock=clock) as outer, track_activity("x", clock=clock):
        clock.now = 5
        assert outer.title == "x" and current_state() == "x: 5.0 s so far; x"
    assert current_state() == "alfine: still running"
