"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.messages import did_you_mean
from pipelines.console.plain_text import count
from pipelines.data.sources import expand_user
from pipelines.errors import ConfigError
from pipelines.inference.run_models import MODEL_NAMES

if TYPE_CHECKING:
    from pipelines.chat.session import ChatSession, Turn

AskColumn = Callable[[str], str | None]
"""Asks the user for the value of a column; None at the end of the input."""
MAX_TEMPERATURE = 10.0


@dataclass(frozen=True)
class Outcome:
    """What a command leads to: a line to show, a turn whose answers come, or the end of the chat."""

    text: str = ""
    turn: Turn | None = None
    ends: bool = False


@dataclass(frozen=True)
class _Command:
    run: Callable[[ChatSession, str, AskColumn], Outcome]
    argument: str
    help: str


def run_command(line: str, session: ChatSession, ask_column: AskColumn) -> Outcome:
    """Runs a line that begins with a slash. Raises AlfineError for one that cannot be run."""
    word, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(word)
    if command is None:
        close = did_you_mean(word, COMMANDS)
        meant = f"did you mean /{close}?" if close else "/help lists the commands"
        raise ConfigError(f"unknown command /{word:.40}; {meant} (to send a prompt with a slash, write two)")
    argument = argument.strip()
    if argument and not command.argument:
        raise ConfigError(f"/{word} takes nothing after it")
    return command.run(session, argument, ask_column)


def _task(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    """The values of the columns follow, one per line."""
    tasks = session.models.job.pipeline.tasks
    if not argument:
        return Outcome(f"tasks: {', '.join(tasks)}" + (f"; now in {session.task}" if session.task else ""))
    columns = session.task_columns(argument)
    if tasks[argument].messages is not None:
        session.join_task(argument)
        return Outcome(f"a new conversation of task {argument}, with its system prompt and its limit")
    row: dict[str, Any] = {}
    for column in columns:
        name = str(column["name"])
        value = ask_column(name if column["required"] else f"{name} (may be empty)")
        if value is None:
            return Outcome("the template was not filled")
        if value or column["required"]:
            row[name] = _json_value(name, value) if column["json"] else value
    return Outcome(turn=session.begin_task(argument, row))


def _json_value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise ConfigError(f"the column {name} is a list; write it as JSON, as in []") from None


def _system(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    if argument:
        session.settings.system = None if argument == "default" else "" if argument == "none" else argument
    current = session.system
    return Outcome(f"system prompt: {current}" if current else "no system prompt")


def _temperature(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    settings = session.settings
    if argument:
        settings.temperature = parse_temperature(argument)
        # Those of the run belong to its own temperature.
        settings.top_p, settings.top_k = 1.0, 0
    sampled = "the most likely token at each step" if settings.temperature == 0 else "sampled"
    return Outcome(f"temperature {settings.temperature:g}: {sampled}")


def parse_temperature(text: str) -> float:
    """Raises ConfigError unless the text is a number from 0 to MAX_TEMPERATURE."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_TEMPERATURE:
        raise ConfigError(f"temperature {text!r:.40}: write a number from 0 to {MAX_TEMPERATURE:g}, as in 0.7")
    return value


def _max(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    settings = session.settings
    if argument == "default":
        settings.max_new_tokens = None
    elif argument:
        if not (argument.isascii() and argument.isdecimal() and 0 < len(argument) < 8 and int(argument)):
            raise ConfigError(f"/max {argument:.40}: write a number of tokens, as in /max 200, or /max default")
        settings.max_new_tokens = int(argument)
    limit = settings.max_new_tokens
    return Outcome(f"answers have at most {count(limit, 'token')}" if limit else "answers have the limit of the run")


def _model(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    if argument:
        if argument not in (*MODEL_NAMES, "both"):
            raise ConfigError(f"/model {argument:.40}: write base, tuned or both")
        session.settings.models = tuple(name for name in MODEL_NAMES if argument in (name, "both"))
    return Outcome(f"answered by {' and '.join(session.settings.models)}")


def _reset(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    session.reset()
    return Outcome("a new conversation")


def _save(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    if not argument:
        raise ConfigError("/save needs a file, as in /save chat.jsonl")
    path: Path = expand_user(argument)
    return Outcome(f"{path}: added {count(session.save(path), 'conversation')}")


def _help(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    words = {f"/{word} {command.argument}".rstrip(): command.help for word, command in COMMANDS.items()}
    width = max(map(len, words))
    lines = [f"{word:<{width}}  {text}" for word, text in words.items()]
    return Outcome("\n".join([*lines, "Ctrl-C stops an answer; a second one leaves."]))


def _quit(session: ChatSession, argument: str, ask_column: AskColumn) -> Outcome:
    return Outcome(ends=True)


COMMANDS: Mapping[str, _Command] = {
    "task": _Command(_task, "NAME", "a new conversation with the task's template; asks for its columns"),
    "system": _Command(_system, "TEXT", "the system prompt; `default` for that of the run, `none` for none"),
    "temperature": _Command(_temperature, "X", "0 for the most likely token at each step, more to sample"),
    "max": _Command(_max, "N", "tokens of an answer; `default` for the limit of the run"),
    "model": _Command(_model, "base|tuned|both", "the models that answer; each has its own conversation"),
    "reset": _Command(_reset, "", "a new conversation"),
    "save": _Command(_save, "FILE", "appends the conversations to a .jsonl file, as rows with `messages`"),
    "help": _Command(_help, "", "this list"),
    "quit": _Command(_quit, "", "ends the chat, as Ctrl-D does"),
}
