"""Row formats: how the columns of a row become a prompt and a completion, or a conversation.

A task says it with `prompt` and `completion` (templates), or with `messages` (a column with a conversation). Without
either, the columns of the first row decide: see `format_detection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config.jinja_templates import TemplateValueError, jinja_template
from pipelines.config.messages import did_you_mean
from pipelines.config.task import Task
from pipelines.config.templates import column_of
from pipelines.data.conversation import Conversation, Message
from pipelines.data.messages import answer_text, parse_messages, transcript
from pipelines.data.templates import (
    MissingColumnError,
    describe_columns,
    fill_nonempty,
    fill_system,
    template_columns,
)
from pipelines.data.tool_calls import parse_tools
from pipelines.errors import DataError


@dataclass(frozen=True)
class FilledRow:
    """What a row is in its task.

    Attributes:
        prompt, completion: the texts of the user's and the assistant's turn; of a conversation, the transcript before
            the evaluated turn and the text of that turn. The completion is None if the row has none.
        system: the system turn of a row that is no conversation.
        turns: the conversation; None for one prompt and one completion.
        turn: the index of the evaluated turn, if several turns of the row are evaluated.
    """

    prompt: str
    completion: str | None
    system: str | None = None
    turns: Conversation | None = None
    turn: int | None = None


def fill_row(
    task: Task, fields: Mapping[str, Any], system_template: str | None, *, needs_answer: bool = True
) -> list[FilledRow]:
    """The examples of one row: several if every turn of a conversation is evaluated.

    needs_answer: whether the row must have a completion; without one, it is a prompt.
    Raises DataError, without a location, for a row that the task cannot use.
    """
    system = _fill(task, system_template, fields, "system", may_be_empty=True)
    if task.messages is None and not _holds_messages(task.prompt, fields):
        prompt = _fill(task, task.prompt, fields, "prompt") or ""
        completion = _fill(task, task.completion, fields, "completion") if needs_answer else None
        if task.history is None:
            return [FilledRow(prompt, completion, system)]
        messages: list[Message] = [*_history(task.history, fields), {"role": "user", "content": prompt}]
        answers = [] if completion is None else [{"role": "assistant", "content": completion}]
        return _conversation_rows(
            task, fields, [*messages, *answers], [None] * (len(messages) + 1), system, needs_answer
        )
    if task.messages is not None:
        if task.messages not in fields:
            described = describe_columns(fields, task.messages)
            raise MissingColumnError(f"messages names the column {task.messages}, but {described}")
        parsed = parse_messages(task.messages, fields[task.messages])
        return _conversation_rows(task, fields, parsed.messages, parsed.flags, system, needs_answer)
    return _prompt_and_completion_rows(task, fields, system, needs_answer)


def _fill(
    task: Task, template: str | None, fields: Mapping[str, Any], kind: str, may_be_empty: bool = False
) -> str | None:
    if template is None:
        return None
    if task.template == "jinja" and (kind != "system" or task.system is not None):
        compiled = jinja_template(template)
        for column in compiled.columns:
            if column not in fields:
                described = describe_columns(fields, column)
                raise MissingColumnError(f"the template names the column {column}, but {described}")
        try:
            text = compiled.render(fields)
        except TemplateValueError as error:
            raise DataError(f"the template of {kind} cannot be filled: {error}") from None
    elif kind == "system":
        text = fill_system(template, fields)
    else:
        return fill_nonempty(template, fields, kind)
    if not text.strip() and not may_be_empty:
        raise DataError(f"the {kind} is empty; fill in its column, or drop the row")
    return text if text.strip() else None


def _holds_messages(template: str | None, fields: Mapping[str, Any]) -> bool:
    """Whether the template is one column that holds a list of messages, as in TRL's conversational format, or one
    message, as in LLaMA-Factory's preferences."""
    column = column_of(template) if template is not None else None
    value = _as_list(fields.get(column.strip())) if column is not None else None
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and ({"role", "from"} & set(item)) for item in value)
    )


def _as_list(value: Any) -> Any:
    """One message as a list of one; any other value as it is."""
    is_message = isinstance(value, dict) and isinstance(value.get("role", value.get("from")), str)
    return [value] if is_message else value


def _prompt_and_completion_rows(
    task: Task, fields: Mapping[str, Any], system: str | None, needs_answer: bool
) -> list[FilledRow]:
    column = (column_of(task.prompt or "") or "").strip()
    parsed = parse_messages(column, _as_list(fields[column]))
    messages, flags = list(parsed.messages), [False] * len(parsed.messages)
    if needs_answer:
        if _holds_messages(task.completion, fields):
            answer_column = (column_of(task.completion or "") or "").strip()
            answers = parse_messages(answer_column, _as_list(fields[answer_column]))
            messages += answers.messages
            flags += [
                message["role"] == "assistant" if flag is None else flag
                for message, flag in zip(answers.messages, answers.flags, strict=True)
            ]
        else:
            messages.append({"role": "assistant", "content": _fill(task, task.completion, fields, "completion")})
            flags.append(True)
    return _conversation_rows(task, fields, messages, flags, system, needs_answer)


def _history(column: str, fields: Mapping[str, Any]) -> Iterator[Message]:
    """The earlier turns of a prompt: a list of [prompt, answer] pairs."""
    pairs = fields.get(column) or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise DataError(f"column {column} is no list of [prompt, answer] pairs of texts")
    for prompt, answer in pairs:
        yield {"role": "user", "content": prompt}
        yield {"role": "assistant", "content": answer}


def _conversation_rows(
    task: Task,
    fields: Mapping[str, Any],
    messages: Sequence[Message],
    flags: Sequence[bool | None],
    system: str | None,
    needs_answer: bool,
) -> list[FilledRow]:
    """The examples of a conversation. Its own system turn counts, else that of the task comes first."""
    tools = None if task.tools is None else parse_tools(task.tools, fields.get(task.tools))
    messages = list(messages)
    flags = list(flags)[: len(messages)]
    if system is not None and messages[0]["role"] != "system":
        messages, flags = [{"role": "system", "content": system}, *messages], [None, *flags]
    if not needs_answer:
        return [_prompt_row(messages, tools)]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    supervised = _supervised_turns(task, fields, messages, flags[: len(messages)])
    conversation = Conversation(messages, supervised, tools)
    evaluated = supervised if task.evaluate_on == "all" else supervised[-1:]
    return [_evaluated(conversation, turn, several=len(evaluated) > 1) for turn in evaluated]


def _prompt_row(messages: list[Message], tools: Any) -> FilledRow:
    """A conversation that the model has to go on with. An answer at its end is left out."""
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(message["role"] == "user" for message in messages):
        raise DataError("the conversation has no turn of the user to answer")
    return FilledRow(transcript(_without_system(messages)), None, turns=Conversation(messages, (), tools))


def _evaluated(conversation: Conversation, turn: int, several: bool) -> FilledRow:
    prompt = transcript(_without_system(conversation.messages[:turn]))
    return FilledRow(prompt, answer_text(conversation.messages[turn]), None, conversation, turn if several else None)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message["role"] != "system"]


def as_test_rows(rows: Sequence[FilledRow]) -> Iterator[FilledRow]:
    """The rows with the conversation cut after the turn that each evaluates, which is its only supervised one."""
    for row in rows:
        if row.turns is None:
            yield row
            continue
        turn = row.turn if row.turn is not None else row.turns.supervised_turns[-1]
        turns = replace(row.turns, messages=row.turns.messages[: turn + 1], supervised_turns=(turn,))
        yield replace(row, turns=turns)


def _supervised_turns(
    task: Task, fields: Mapping[str, Any], messages: Sequence[Message], flags: Sequence[bool | None]
) -> tuple[int, ...]:
    """The indices of the turns that are trained: by the flags of the messages, else by `train_on`."""
    assistants = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not assistants:
        raise DataError("the conversation has no turn of the assistant, so there is nothing to train; drop the row")
    if messages[assistants[0] - 1]["role"] == "system" or assistants[0] == 0:
        raise DataError("the conversation begins with a turn of the assistant; remove it, or drop the row")
    wanted = dict.fromkeys(assistants, task.train_on == "all")
    if task.train_on == "last":
        wanted[assistants[-1]] = True
    elif task.train_on != "all":
        wanted |= _by_column(task.train_on, fields, assistants)
    wanted |= {index: flag for index in assistants if (flag := flags[index]) is not None}
    supervised = tuple(index for index in assistants if wanted[index])
    if not supervised:
        raise DataError("no turn of the assistant is trained (train, weight or train_on); drop the row")
    return supervised


def _by_column(column: str, fields: Mapping[str, Any], assistants: Sequence[int]) -> dict[int, bool]:
    """Which turns a row's column says are trained: one boolean, or a list of them, one per turn of the assistant."""
    if column not in fields:
        described = describe_columns(fields, column)
        closest = did_you_mean(column, ("all", "last"))
        hint = f"; did you mean {closest}?" if closest else ""
        raise MissingColumnError(f"train_on names the column {column}, but {described}{hint}")
    value = fields[column]
    if isinstance(value, bool):
        return dict.fromkeys(assistants, value)
    if isinstance(value, list) and len(value) == len(assistants) and all(isinstance(item, bool) for item in value):
        return dict(zip(assistants, value, strict=True))
    raise DataError(
        f"column {column}, named by train_on, must hold true, false, or a list of {len(assistants)} booleans, one per "
        "turn of the assistant"
    )


def used_columns(task: Task) -> list[str]:
    """The columns that the task's templates and keys name, for text in other columns."""
    columns = [name for name in (task.messages, task.tools, task.history, task.cluster_by) if name is not None]
    for template in (task.prompt, task.completion):
        if template is not None:
            columns += jinja_template(template).columns if task.template == "jinja" else template_columns(template)
    return columns


def answer_columns(task: Task) -> list[str]:
    """The columns that hold a row's answer."""
    if task.messages is not None:
        return [task.messages]
    return used_columns(task.model_copy(update={"prompt": None, "history": None, "tools": None, "cluster_by": None}))
