"""`alfine chat`: two conversations, commands, answers that cannot act on the terminal, and the end of everything."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from termios import TIOCSCTTY, TIOCSWINSZ

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipelines.chat.display import PlainDisplay, TerminalDisplay
from pipelines.chat.loop import ChatLoop, StreamReader
from pipelines.chat.session import Answer, ChatSession, ChatSettings, Turn, greeting
from pipelines.cli import main
from pipelines.config.task import Task
from pipelines.data.messages import parse_messages
from pipelines.data.readers import read_rows
from pipelines.data.row_formats import fill_row
from pipelines.errors import DataError
from pipelines.inference.engine import GenerationEngine
from pipelines.inference.requests import GenerationRequest, GenerationStream, TextDelta
from pipelines.prediction.predict import predict
from tests.inference.tiny_run import TASKS, load_models, make_run
from tests.jobs import QUIET

CHAT_TASK = {"data": "chats.jsonl", "messages": "messages", "metric": "chrf", "system": "Be short."}
PIPELINE = {"tasks": {**TASKS, "talk": CHAT_TASK}, "system": "Be brief."}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("chat"), pipeline=PIPELINE)


@pytest.fixture(scope="module")
def models(run):
    return load_models(run)


@pytest.fixture(scope="module")
def engine(models):
    with GenerationEngine(models) as engine:
        yield engine


@pytest.fixture
def session(models, engine):
    return ChatSession(models, engine, ChatSettings(max_new_tokens=6))


def chat(session, *lines):
    """The lines that a chat without a terminal writes, and its exit code."""
    output = io.StringIO()
    display = PlainDisplay(Console(file=output, width=60))
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    code = ChatLoop(session, StreamReader(io.BytesIO(text)), display).run()
    return output.getvalue().splitlines(), code


def prompt_text(session, model="tuned", text="x"):
    ids = session._prompt(model, text).ids
    return session.models.prompt_format.tokenizer.decode(ids)


def test_each_model_answers_on_its_own_answers(session):
    lines, code = chat(session, "the tea", "", "nine")
    assert code == 0 and {line.split(":")[0].split(" ")[0] for line in lines} == {"base", "tuned"}
    base, tuned = (session.histories[name] for name in ("base", "tuned"))
    assert [message["content"] for message in base[::2]] == ["the tea", "nine"]
    assert base[1] != tuned[1], "the random adapter changes nothing; the test says nothing"
    assert base[1]["content"] in prompt_text(session, "base") and tuned[1]["content"] in prompt_text(session, "tuned")
    assert "Be brief." in prompt_text(session)


def test_an_answer_is_that_of_the_run(run, session, tmp_path, monkeypatch):
    """The first prompt of a task has the tokens of the run, and so the answer of predict."""
    monkeypatch.chdir(tmp_path)
    for task, row in {"odd": {"q": "is 3 odd"}, "say": {"text": "the tea"}}.items():
        Path("new.jsonl").write_text(json.dumps(row) + "\n")
        (expected,) = predict(run, ["new.jsonl"], task, QUIET)
        session.settings.max_new_tokens = None
        chat(session, f"/task {task}", *row.values())
        assert session.histories["tuned"][-1]["content"].strip() == expected["prediction"].strip()


def test_task_begins_a_conversation_that_goes_on(session):
    chat(session, "the tea", "/task say", "a gate")
    assert session.task == "say" and session.system == "Be kind."
    assert [message["content"] for message in session.histories["base"][:1]] == ["Say a gate"]
    assert "Be kind." in prompt_text(session) and "Be brief." not in prompt_text(session)
    chat(session, "/reset")
    assert session.task is None and session.histories["base"] == [] and "Be brief." in prompt_text(session)


def test_task_of_conversations_has_no_columns_to_fill(session):
    lines, _ = chat(session, "/task talk", "nine")
    assert "a new conversation of task talk" in lines[0]
    assert session.system == "Be short." and session.histories["tuned"][0]["content"] == "nine"


def test_a_template_that_cannot_be_filled_changes_nothing(session):
    chat(session, "the tea")
    before = json.dumps(session.histories)
    assert chat(session, "/task odd")[0] == ["the template was not filled"]
    lines, _ = chat(session, "/task odd", "x" * 4000)
    assert "leaves no room" in lines[0], lines
    assert json.dumps(session.histories) == before and session.task is None


def test_settings(session):
    lines, _ = chat(
        session,
        *("/temperature", "/temperature 0.5", "/max 3", "/max", "/max default", "/model tuned", "/model"),
        *("/system", "/system You are a cat.", "/system none", "/system default", "/task"),
    )
    assert lines == [
        "temperature 0: the most likely token at each step",
        "temperature 0.5: sampled",
        "answers have at most 3 tokens",
        "answers have at most 3 tokens",
        "answers have the limit of the run",
        "answered by tuned",
        "answered by tuned",
        "system prompt: Be brief.",
        "system prompt: You are a cat.",
        "no system prompt",
        "system prompt: Be brief.",
        "tasks: odd, say, talk",
    ]
    chat(session, "/system none", "/max 2", "nine")
    assert "Be brief." not in prompt_text(session) and session.histories["base"] == []
    assert len(session.histories["tuned"]) in (0, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "error: unknown command /rest; did you mean /reset? (to send a prompt with a slash, write two)"),
        ("/xyz", "error: unknown command /xyz; /help lists the commands"),
        ("/", "error: unknown command /; /help lists"),
        ("/temperature hot", "error: temperature 'hot': write a number from 0 to 10"),
        ("/temperature nan", "write a number from 0 to 10"),
        ("/temperature -1", "write a number from 0 to 10"),
        ("/max 0", "error: /max 0: write a number of tokens"),
        ("/max ٣", "write a number of tokens"),
        ("/max 99999999999", "write a number of tokens"),
        ("/model gpt", "error: /model gpt: write base, tuned or both"),
        ("/task odds", "error: unknown task 'odds'; did you mean odd?"),
        ("/save", "error: /save needs a file"),
        ("/save x.jsonl", "error: there is no conversation to save yet"),
        ("/reset now", "error: /reset takes nothing after it"),
        ("x" * 4000, "leaves no room for a completion in the context of 512 tokens; shorten it"),
        ("\udcff", "error: line 1 is not UTF-8; it was not sent"),
        ("/\x1b[31m", "error: unknown command /\\x1b[31m"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(session, line, message):
    lines, code = chat(session, line, "/model")
    assert message in lines[0] and lines[1:] == ["answered by base and tuned"] and code == 0
    assert session.histories == {"base": [], "tuned": []}


def test_a_conversation_that_fills_the_context_says_what_to_do(session):
    lines, _ = chat(session, "the tea", "word " * 300)
    assert lines[-1].endswith("/reset begins a new conversation"), lines


def test_two_slashes_send_one(session):
    session.settings.max_new_tokens = 12
    chat(session, "//task")
    assert all(history[0]["content"] == "/task" for history in session.histories.values() if history)


def test_saved_conversations_are_rows_of_a_task(session, tmp_path):
    path = tmp_path / "chat.jsonl"
    lines, _ = chat(session, "the tea", f"/save {path}", "/reset", "nine\u2028 ten", f"/save {path}")
    assert lines.count(f"{path}: added 2 conversations") == 2
    rows = read_rows(path)
    assert [row["model"] for row in rows] == ["base", "tuned"] * 2
    assert [row["messages"][1]["content"] for row in rows] == ["the tea"] * 2 + ["nine\u2028 ten"] * 2
    for row in rows:
        parse_messages("messages", row["messages"])
        (filled,) = fill_row(Task(data="x", messages="messages", metric="chrf"), row, None)
        assert filled.completion == row["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat.json", None, "conversations are saved as JSON Lines; name it .jsonl"),
        ("rows.jsonl", '{"q": 1}\n', "exists and does not hold saved conversations"),
        ("cut.jsonl", '{"messages": []}', "exists and does not hold saved conversations"),
        ("binary.jsonl", "\x00\xff", "exists and does not hold saved conversations"),
        ("no/chat.jsonl", None, "no such file or directory"),
        ("folder.jsonl", "folder", "exists and does not hold"),
    ],
)
def test_files_that_conversations_are_not_saved_in(session, tmp_path, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    lines, _ = chat(session, "the tea", f"/save {path}")
    assert message in lines[-1]
    assert not path.is_file() or path.read_text() == content


WORDS = st.sampled_from(
    ["the tea", "//x", "\x1b[2J", "\u202e", "{q}", "[red]x[/red]", "<|im_end|>", "é\U0001f600", "a" * 900]
)
COMMANDS_OF_FUZZ = st.sampled_from(
    ["/task odd", "/task say", "/task talk", "/system x", "/system none", "/system default", "/temperature 1", "/max 2"]
    + ["/max default", "/model base", "/model tuned", "/model both", "/reset", "/help", "/save", "/nonsense", "/"]
)


@given(lines=st.lists(WORDS | COMMANDS_OF_FUZZ | st.text(max_size=8), max_size=8))
@settings(max_examples=40, deadline=None)
def test_any_lines_are_answered_or_refused_in_one_line(models, engine, lines):
    session = ChatSession(models, engine, ChatSettings(max_new_tokens=3))
    lines = [line.replace("\n", " ") for line in lines if line.strip() != "/quit"]
    shown, code = chat(session, *lines)
    assert code == 0
    for line in shown:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", line), line
    for history in session.histories.values():
        assert [message["role"] for message in history] == ["user", "assistant"] * (len(history) // 2)


# --- display -----------------------------------------------------------------------------------------------

EVIL = "a\x1b]0;title\x07\x1b[2J\r\u202e[bold]b[/bold]\n\tc"


def fake_turn(*parts, model="base"):
    """A turn whose answer is given: what a model may write is not up to a tiny one."""
    stream = GenerationStream(GenerationRequest(model, [1], 9))
    for part in parts:
        stream.put(part)
    return Turn("x", {model: stream}, {model: Answer(model, 9)})


@pytest.mark.parametrize("kind", [PlainDisplay, TerminalDisplay])
def test_what_a_model_writes_cannot_act_on_the_terminal(kind):
    output = io.StringIO()
    console = Console(file=output, force_terminal=kind is TerminalDisplay, width=120, color_system=None)
    kind(console).show(fake_turn(TextDelta(EVIL, EVIL), TextDelta(EVIL, finish_reason="stop")))
    text = re.sub(r"\x1b\[(\?25[lh]|[0-9;]*[mKA])", "", output.getvalue())  # those of rich itself
    assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202e]", text), text
    assert "[bold]b[/bold]" in text and "␛" in text


def test_plain_lines():
    output = io.StringIO()
    display = PlainDisplay(Console(file=output, width=20))
    parts = [TextDelta(reasoning="hm\nwe"), TextDelta(reasoning="ll"), TextDelta("one\ntw"), TextDelta("o" * 30)]
    display.show(fake_turn(*parts, TextDelta(token_ids=(1,) * 9, finish_reason="length")))
    assert output.getvalue().splitlines() == [
        "base (reasoning): hm",
        "base: one",
        "base (reasoning): well",
        f"base: tw{'o' * 30}",
        "base (cut at 9 tokens; /max N sets the limit)",
    ]


@pytest.mark.parametrize("width", [60, 120])
def test_long_answers_leave_the_terminal_as_it_was(width):
    """While they grow only the last lines are drawn; at the end the whole answer is."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, height=10, color_system=None)
    turn = fake_turn(TextDelta("".join(f"line {n}\n" for n in range(50))), TextDelta(finish_reason="stop"))
    other = fake_turn(TextDelta("short", finish_reason="stop"), model="tuned")
    turn.streams |= other.streams
    turn.answers |= other.answers
    TerminalDisplay(console).show(turn)
    final = output.getvalue().rpartition("\x1b[?25h")[2]
    assert all(f"line {n}" in final for n in range(50))
    first = next(line for line in final.splitlines() if "base" in line)
    assert ("tuned" in first) == (width >= 100)


def test_an_error_of_the_engine_is_shown_and_nothing_is_kept(session):
    turn = fake_turn(TextDelta("half"))
    turn.streams["base"].fail(DataError("out of memory"))
    output = io.StringIO()
    PlainDisplay(Console(file=output)).show(turn)
    session.keep(turn)
    assert output.getvalue() == "base: half\nbase (out of memory)\n" and session.histories["base"] == []


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_without_a_terminal(run, monkeypatch):
    result = CliRunner().invoke(
        main, ["chat", str(run.folder), "--max-new-tokens", "3"], input="the tea\n/quit\nnine\n"
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("run: base ") and "one copy of the base's weights" in lines[0]
    assert "tasks: odd, say, talk" in lines[1] and lines[2] == "system prompt: Be brief."
    assert {line[:4] for line in lines[4:]} <= {"base", "tune"} and not any("nine" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "no"), "has no task 'no'; it has odd, say, talk"),
        (("--temperature", "hot"), "temperature 'hot': write a number from 0 to 10"),
    ],
)
def test_options_that_are_wrong(run, words, message):
    result = CliRunner().invoke(main, ["chat", str(run.folder), *words])
    assert (result.exit_code, message in result.stderr, result.stdout) == (2, True, "")


def test_greeting_of_a_model_without_a_chat_template(tmp_path):
    models = load_models(make_run(tmp_path, "no_template", adapter=False))
    with GenerationEngine(models) as engine:
        session = ChatSession(models, engine, ChatSettings(max_new_tokens=4))
        assert "each prompt is answered by itself" in greeting(session) and "two models in memory" in greeting(session)
        lines, _ = chat(session, "the tea", "nine")
    assert not any("error" in line for line in lines), lines


def take_terminal():
    """Makes Ctrl-C a signal of the child, also if this process ignores it, as one in the background does."""
    fcntl.ioctl(0, TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`alfine chat` in a pseudo-terminal."""

    def __init__(self, run, *options, columns=120):
        self.end, child = pty.openpty()
        fcntl.ioctl(child, TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "chat", str(run.folder), *options],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**environment, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(child)
        self.text = ""

    def type(self, text):
        os.write(self.end, text.encode())

    def interrupt(self, seconds=60):
        """Types Ctrl-C while the main thread waits for a line.

        CPython's readline loses a signal that comes between the prompt and its `select` until the next key.
        """
        deadline = time.monotonic() + seconds
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.type("\x03")

    def wait_for(self, pattern, seconds=60):
        """Reads until the new output matches; returns it."""
        deadline, start = time.monotonic() + seconds, len(self.text)
        while not re.search(pattern, self.text[start:]):
            assert time.monotonic() < deadline, self.text[start:]
            if select.select([self.end], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.end, 65536).decode("utf-8", "replace")
                except OSError:
                    assert re.search(pattern, self.text[start:]), self.text[start:]
        return self.text[start:]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        os.close(self.end)
        return self.process.wait(10)


def test_a_terminal(run):
    terminal = Terminal(run, "--max-new-tokens", "400")
    try:
        terminal.wait_for("> $")
        terminal.type("/max 5\r")
        terminal.wait_for("at most 5 tokens")
        terminal.type("the tea\r")
        shown = terminal.wait_for(r"\x1b\[\?25h[\s\S]*> $")
        assert re.search(r"base.*tuned", shown.rpartition("\x1b[?25h")[2]), shown
        terminal.type("one\\\r")
        terminal.wait_for(r"\.\.\. $")
        terminal.type("two\r")
        terminal.wait_for(r"\x1b\[\?25h[\s\S]*> $")
        terminal.type("/max 400\r")
        terminal.wait_for("at most 400 tokens[\\s\\S]*> $")
        terminal.interrupt()
        terminal.wait_for("Ctrl-C again[\\s\\S]*> $")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()


def test_two_interrupts_leave(session):
    class Interrupted:
        def read(self, prompt):
            raise KeyboardInterrupt

    output = io.StringIO()
    assert ChatLoop(session, Interrupted(), PlainDisplay(Console(file=output))).run() == 130
    assert output.getvalue().count("Ctrl-C again") == 1


def test_ctrl_c_stops_an_answer_and_keeps_it(session, monkeypatch):
    """In this process, so that the moment is certain: after the first part of the answer."""
    session.settings.max_new_tokens = 400
    started = threading.Event()
    original = GenerationStream.put

    def put(stream, delta):
        original(stream, delta)
        if delta.text and not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GenerationStream, "put", put)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        lines, code = chat(session, "the tea", "/max 3")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 0 and started.is_set()
    assert "base (stopped)" in lines and "(Ctrl-C again, or /quit, to leave)" in lines
    assert lines[-1] == "answers have at most 3 tokens" and session.histories["base"][-1]["role"] == "assistant"
