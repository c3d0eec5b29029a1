"""Tools: the schemas that a chat template lists, and the calls in an assistant's turn, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.config.messages import shorten
from pipelines.errors import DataError
from pipelines.storage.strict_json import NonTextValue, StrictJsonError, parse

_CALL_EXAMPLE = '{"name": "search", "arguments": {"query": "tea"}}'
_TOOL_EXAMPLE = '{"type": "function", "function": {"name": "search", "parameters": {…}}}'


def parse_tools(column: str, value: Any) -> list[dict[str, Any]] | None:
    """The schemas in a row's column of tools: a list of objects or its JSON text; None for a row without tools.

    A schema without the envelope `{"type": "function", "function": …}` gets it. Parameters written as JSON text are
    parsed. Raises DataError.
    """
    if isinstance(value, str):
        value = parse_json_text(value, f"column {column}") if value.strip() else None
    if isinstance(value, dict):
        value = [value]
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise DataError(f"column {column} holds no list of tools; write [{_TOOL_EXAMPLE}]")
    return [_parse_tool(f"column {column}, tool {number}", tool) for number, tool in enumerate(value, 1)]


def _parse_tool(place: str, tool: Any) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = parse_json_text(tool, place)
    if not isinstance(tool, dict):
        raise DataError(f"{place} is no object; write {_TOOL_EXAMPLE}")
    tool = {key: value for key, value in tool.items() if value is not None}
    function = tool.get("function", tool if "name" in tool else None)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(f"{place} has no name; write {_TOOL_EXAMPLE}")
    function = {key: value for key, value in function.items() if value is not None}
    if isinstance(function.get("parameters"), str):
        function["parameters"] = parse_json_text(function["parameters"], f"{place}, parameters")
    _check_json(place, function)
    if "function" not in tool:
        return {"type": "function", "function": function}
    return {**tool, "type": tool.get("type", "function"), "function": function}


def parse_tool_calls(place: str, value: Any) -> list[dict[str, Any]]:
    """The calls of an assistant's turn: a list of calls or one call, each with or without the envelope, or their JSON.

    Arguments written as JSON text become an object, which is what chat templates expect. Raises DataError.
    """
    if isinstance(value, str):
        value = parse_json_text(value, place)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise DataError(f"{place} holds no tool call; write [{_CALL_EXAMPLE}]")
    return [
        _parse_call(f"{place}, call {number}" if len(value) > 1 else place, call)
        for number, call in enumerate(value, 1)
    ]


def _parse_call(place: str, call: Any) -> dict[str, Any]:
    if isinstance(call, str):
        call = parse_json_text(call, place)
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name.strip():
        raise DataError(f"{place} has no name of a tool; write {_CALL_EXAMPLE}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json_text(arguments, f"{place}, arguments of {name}") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise DataError(f"{place}: the arguments of {name} are no object; write {_CALL_EXAMPLE}")
    _check_json(place, arguments)
    parsed: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if isinstance(call, Mapping) and isinstance(call.get("id"), str) and call["id"]:
        parsed = {"id": call["id"], **parsed}
    return parsed


def without_nulls(value: Any) -> Any:
    """The value without keys whose value is null, at every depth.

    In a Parquet file all objects of a column have the same keys, so that null stands for a key that is not there.
    """
    if isinstance(value, dict):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    return [without_nulls(child) for child in value] if isinstance(value, list) else value


def parse_json_text(text: str, place: str) -> Any:
    """The value of a JSON text in a row. Raises DataError."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        found = shorten(text.strip(), 40)
        hint = ", with double quotes (json.dumps writes them)" if "'" in text and '"' not in text else ""
        message = f"{error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}"
        raise DataError(f"{place} is not JSON ({message}), found {found}; write JSON{hint}") from None
    except StrictJsonError as error:
        raise DataError(f"{place} {error}") from None


def _check_json(place: str, value: Any) -> None:
    """Raises DataError for a value inside `value` that JSON cannot hold, such as bytes of a Parquet file."""
    if isinstance(value, NonTextValue):
        raise DataError(f"{place}: a value {value.reason}")
    for child in [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_json(place, child)
