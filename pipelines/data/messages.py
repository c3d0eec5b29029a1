"""Messages: the conversations that rows hold, in OpenAI's, ShareGPT's and related forms, as `Message` dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.messages import did_you_mean, shorten
from pipelines.data.conversation import Message
from pipelines.data.templates import to_text
from pipelines.data.tool_calls import parse_json_text, parse_tool_calls
from pipelines.errors import DataError
from pipelines.storage.strict_json import dump

MESSAGE_EXAMPLE = '{"role": "user", "content": "…"}'
_ROLES = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt model bot chatbot ai chatgpt bing bard claude",
    "tool": "tool function ipython observation tool_response tool_result function_response",
    "call": "function_call tool_call",
}
"""Our name of a role → its names in files. A `call` is an assistant's turn whose content is a tool call as JSON."""
ROLE_NAMES = {name: role for role, names in _ROLES.items() for name in names.split()}

_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_FLAG_KEYS = ("train", "weight", "loss_weight")
_KNOWN_KEYS = {
    *(*_ROLE_KEYS, *_CONTENT_KEYS, *_REASONING_KEYS, *_FLAG_KEYS),
    *("name", "tool_call_id", "tool_calls", "function_call", "train_detail"),
}
_TEXT_PARTS, _REASONING_PARTS = ("text", "input_text", "output_text"), ("reasoning", "thinking")
_MEDIA = ("image", "audio", "video", "file")


@dataclass(frozen=True)
class ParsedMessages:
    """The messages of a row.

    Attributes:
        messages: all turns in order, with roles system, user, assistant and tool.
        flags: for each turn whether the row says that it is trained; None where it does not say.
        unused_keys: the keys of messages that have no effect.
    """

    messages: list[Message]
    flags: list[bool | None]
    unused_keys: tuple[str, ...] = ()


def parse_messages(column: str, value: Any) -> ParsedMessages:
    """The conversation in a row's column: a list of messages, an object of lists, or the JSON text of one.

    Raises DataError, without a location, for a value that is no conversation.
    """
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            found = f"the text {shorten(value.strip(), 40)!r}" if value.strip() else "an empty text"
            raise DataError(f"column {column} holds {found}, not a list of messages; write [{MESSAGE_EXAMPLE}, …]")
        value = parse_json_text(value, f"column {column}")
    if isinstance(value, dict):
        value = _from_columns(value)
    if value is None:
        raise DataError(f"column {column} has no messages (null); write [{MESSAGE_EXAMPLE}, …], or drop the row")
    if not isinstance(value, list):
        raise DataError(f"column {column} holds no list of messages; write [{MESSAGE_EXAMPLE}, …]")
    if not value:
        raise DataError(f"column {column} has no messages: the list is empty; drop the row")
    messages: list[Message] = []
    flags: list[bool | None] = []
    unused: dict[str, None] = {}
    for number, item in enumerate(value, 1):
        place = f"column {column}, turn {number}"
        message, flag = _parse_message(place, item)
        messages.append(message)
        flags.append(flag)
        unused |= {key: None for key, part in item.items() if key not in _KNOWN_KEYS and part is not None}
    return ParsedMessages(messages, flags, tuple(unused))


def _from_columns(value: Mapping[str, Any]) -> Any:
    """A conversation as an object of lists, one per key, as old data sets of Hugging Face hold it; or `value`."""
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    if len({len(items) for items in lists.values()}) != 1 or not any(key in lists for key in _ROLE_KEYS):
        return dict(value)
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _parse_message(place: str, item: Any) -> tuple[Message, bool | None]:
    if not isinstance(item, dict):
        kind = "a text" if isinstance(item, str) else "null" if item is None else "a value"
        raise DataError(f"{place} is {kind}, not an object; write {MESSAGE_EXAMPLE}")
    # A Parquet file gives every message all keys, with null for those that it does not have.
    given = {key: value for key, value in item.items() if value is not None}
    if media := next((key for key in given if _media(key) and given[key]), None):
        raise DataError(f"{place} has {media}, but alfine trains on text only; drop the row")
    if given.get("train_detail"):
        raise DataError(
            f"{place} has train_detail: parts of a turn cannot be chosen; split the turn, or remove the key"
        )
    role = _role(place, given)
    text, parts = _content(place, given)
    message: Message = {"role": "assistant" if role == "call" else role, "content": text}
    reasoning = [
        *(to_text(key, given[key]) for key in _REASONING_KEYS if _is_text(place, key, given)),
        *parts.reasoning,
    ]
    if len(set(reasoning)) > 1 and not parts.reasoning:
        raise DataError(
            f"{place} has two different thoughts, in {' and '.join(k for k in _REASONING_KEYS if k in given)}"
        )
    calls = _calls(place, role, text, given, parts)
    if role == "call":
        message["content"] = ""
    if message["role"] == "assistant":
        if reasoning and any(reasoning):
            message["reasoning_content"] = "".join(parts.reasoning) or reasoning[0]
        if calls:
            message["tool_calls"] = calls
    elif calls or any(reasoning):
        what = "tool calls" if calls else "a thought"
        raise DataError(f"{place} is the {message['role']}'s and has {what}, which only the assistant's turns can have")
    message |= {key: given[key] for key in ("name", "tool_call_id") if isinstance(given.get(key), str) and given[key]}
    _check_content(place, message)
    return message, _flag(place, message["role"], given, parts)


def _role(place: str, given: Mapping[str, Any]) -> str:
    """The role of a message: system, user, assistant, tool, or call."""
    names = [given[key] for key in _ROLE_KEYS if key in given]
    if not names:
        raise DataError(f"{place} has no role (its keys: {_listed(given)}); write {MESSAGE_EXAMPLE}")
    roles = {ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None for name in names}
    if len(roles) > 1:
        raise DataError(f"{place} has two roles, {' and '.join(f'{name!r:.40}' for name in names)}; keep one of them")
    role = roles.pop()
    if role is None:
        near = did_you_mean(names[0], ROLE_NAMES) if isinstance(names[0], str) else None
        advice = f"did you mean {near}?" if near else "write system, user, assistant or tool"
        raise DataError(f"{place} has the role {names[0]!r:.40}, which is not known; {advice}")
    return role


@dataclass
class _Parts:
    """What a list of content parts holds besides its text."""

    reasoning: list[str]
    calls: list[Any]
    flags: list[bool | None]


def _content(place: str, given: Mapping[str, Any]) -> tuple[str, _Parts]:
    """The text of a message, and what its list of parts holds besides it."""
    contents = [given[key] for key in _CONTENT_KEYS if key in given]
    if len(contents) > 1 and any(content != contents[0] for content in contents):
        keys = " and ".join(key for key in _CONTENT_KEYS if key in given)
        raise DataError(f"{place} has two different texts, in {keys}; keep one of them")
    content = contents[0] if contents else ""
    parts = _Parts([], [], [])
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if isinstance(content, dict):
        raise DataError(f"{place}: its content is an object; write it as text, such as its JSON")
    if not isinstance(content, list):
        return _text(place, content), parts
    return "".join(_part(f"{place}, part {number}", part, parts) for number, part in enumerate(content, 1)), parts


def _part(place: str, part: Any, parts: _Parts) -> str:
    """The text of one part; a thought or a call is added to `parts`."""
    if isinstance(part, str):
        return _text(place, part)
    if not isinstance(part, dict):
        raise DataError(f'{place} of the content is no object; write {{"type": "text", "text": "…"}}')
    given = {key: value for key, value in part.items() if value is not None}
    kind = str(given.get("type", "text")).strip().lower()
    if media := _media(kind) or next((found for key in given if (found := _media(key))), None):
        raise DataError(f"{place} of the content is {media}, but alfine trains on text only; drop the row")
    keys = [key for key in ("text", "value", "content", *_REASONING_KEYS) if key in given]
    if kind == "tool_call":
        parts.calls.append(given[keys[0]] if keys else given)
        return ""
    if kind not in (*_TEXT_PARTS, *_REASONING_PARTS) or not keys:
        wrong = f"has the type {shorten(kind, 30)!r}" if keys else "has no text"
        raise DataError(f'{place} of the content {wrong}; write {{"type": "text", "text": "…"}}')
    text = _text(place, given[keys[0]])
    if kind in _REASONING_PARTS:
        parts.reasoning.append(text)
        return ""
    parts.flags.append(_read_flag(place, given))
    return text


def _media(key: str) -> str | None:
    """What a key or a type of part names if it is not text: `an image`."""
    kind = next((kind for kind in _MEDIA if kind in key.lower().split("_") or f"{kind}s" == key.lower()), None)
    return kind and f"{'an' if kind[0] in 'ai' else 'a'} {kind}"


def _text(place: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise DataError(f"{place}: its text is {'a list' if isinstance(value, list) else 'an object'}; write a text")
    try:
        return to_text("content", value)
    except DataError as error:
        raise DataError(f"{place}: {str(error).removeprefix('column ')}") from None


def _is_text(place: str, key: str, given: Mapping[str, Any]) -> bool:
    """Whether the message has a text in `key`. Raises DataError for another value, such as a list of parts."""
    if key in given and not isinstance(given[key], str):
        raise DataError(f"{place}: {key} is no text; write the thought as text")
    return key in given


def _calls(place: str, role: str, text: str, given: Mapping[str, Any], parts: _Parts) -> list[dict[str, Any]]:
    """The tool calls of a message, in whichever of the forms it has them."""
    calls: list[dict[str, Any]] = []
    if role == "call":
        calls += parse_tool_calls(place, text)
    if given.get("tool_calls"):
        calls += parse_tool_calls(f"{place}, tool_calls", given["tool_calls"])
    if given.get("function_call"):
        calls += parse_tool_calls(f"{place}, function_call", given["function_call"])
    for call in parts.calls:
        calls += parse_tool_calls(place, call)
    return calls


def _check_content(place: str, message: Message) -> None:
    """Raises DataError for a user's or an assistant's turn without a text. A tool's result and a system turn may be
    empty."""
    if message["role"] in ("user", "assistant") and not message["content"].strip() and not message.get("tool_calls"):
        raise DataError(f"{place} ({message['role']}) is empty; write its text, or drop the row")


def _flag(place: str, role: str, given: Mapping[str, Any], parts: _Parts) -> bool | None:
    """Whether the row says that the turn is trained: its own key, or that of all of its parts."""
    flag = _read_flag(place, given)
    in_parts = set(parts.flags)
    if len(in_parts) > 1:
        raise DataError(
            f"{place}: parts of a turn cannot be trained alone; give the whole turn its `train`, or split it"
        )
    if flag is None and in_parts:
        flag = in_parts.pop()
    if flag and role != "assistant":
        raise DataError(
            f"{place} is the {role}'s and is to be trained, but only the assistant's turns are; write false"
        )
    return flag


def _read_flag(place: str, given: Mapping[str, Any]) -> bool | None:
    """The value of `train`, `weight` or `loss_weight`, None without any."""
    values: list[bool] = []
    for key in _FLAG_KEYS:
        if key not in given:
            continue
        value = given[key]
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            wanted = "true or false" if key == "train" else "0 or 1: turns are trained or not, not weighted"
            raise DataError(f"{place}: {key} is {value!r:.40}; write {wanted}")
        values.append(bool(value))
    if len(set(values)) > 1:
        raise DataError(f"{place}: {' and '.join(key for key in _FLAG_KEYS if key in given)} contradict each other")
    return values[0] if values else None


def _listed(keys: Mapping[str, Any]) -> str:
    return shorten(", ".join(map(str, keys)) or "none", 60)


def answer_text(message: Message) -> str:
    """The text of an assistant's turn for display and scoring: its content, and its tool calls as JSON."""
    calls = [dump_call(call) for call in message.get("tool_calls", ())]
    return "\n".join([*([message["content"]] if message["content"] else []), *calls])


def dump_call(call: Mapping[str, Any]) -> str:
    """A tool call as one line of JSON: its name and arguments."""
    return dump({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})


def transcript(messages: Sequence[Message]) -> str:
    """The messages as readable text, each after its role; a single user's turn is its text alone."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {answer_text(message)}" for message in messages)
