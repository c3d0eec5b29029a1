"""JSON files: an array of objects, or an object that holds one such array. They are read in parts, row by row.

An object of columns, as pandas and datasets write them, is read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.text_files import (
    MAX_LINE_BYTES,
    NumberedRows,
    detect_encoding,
    text_chunks,
)
from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import TOO_DEEP, StrictJsonError, parse

_DECODER = json.JSONDecoder()
_NO_WHITE_SPACE = re.compile(r"[^ \t\n\r]")
_LONGEST_PART = 16
"""Characters before the end of a part in which a literal, a number or an escape may be cut."""


def read_json_array(path: Path) -> NumberedRows:
    """Yields the objects of the file's array, each after the line on which it begins.

    The array is the whole file, or the only array of objects of the file's object; its other keys are left out. An
    object of columns yields their rows, each after its index from 1. Raises DataError, with the line, for invalid JSON,
    for an element that is not an object, and for an object with several arrays of objects, or with none and no columns.
    """
    scanner = _Scanner(path)
    if scanner.peek() == "[":
        yield from scanner.objects_of_array()
    elif scanner.peek() == "{":
        yield from _MemberRows(scanner).read([])
    else:
        raise scanner.error("expected a JSON array of objects, [{...}, {...}]")
    if scanner.peek():
        raise scanner.error("there is text after the end of the JSON value; is it two files in one?")


def json_notes(path: Path) -> list[str]:
    """What the rows are, unless the file is an array of objects."""
    scanner = _Scanner(path)
    if scanner.peek() != "{":
        return []
    others: list[str] = []
    rows = _MemberRows(scanner)
    count = sum(1 for _ in rows.read(others))
    if rows.key is None:
        return [f"holds columns, not rows; read as {count:,} row{'s' if count != 1 else ''}"]
    if not others:
        return []
    return [f"its rows are the array {rows.key!r}; the other keys are left out ({', '.join(others[:5])})"]


def is_array(path: Path) -> bool:
    """Whether the file's first character is that of an array."""
    return _Scanner(path).peek() == "["


def is_json_lines(path: Path) -> bool:
    """Whether the file is a sequence of objects, or one object on one line that holds neither rows nor columns."""
    scanner = _Scanner(path)
    if scanner.peek() != "{":
        return False
    try:
        value = scanner.value()
    except DataError:
        return False  # the reader reports it
    if scanner.peek() == "{":
        return True
    holds_rows = any(map(_is_array, value.values())) or bool(value and _columns(value))
    return scanner.peek() == "" and scanner.line == 1 and not holds_rows


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _columns(members: dict[str, Any]) -> dict[str, list[Any]] | None:
    """The values of each column, if every member is a list, or an object whose keys are the indices of rows, as pandas
    writes it; else None."""
    columns: dict[str, list[Any]] = {}
    indices: list[str] | None = None
    for name, value in members.items():
        if isinstance(value, dict) and value and all(key.isdigit() for key in value):
            indices = indices or list(value)
            columns[name] = list(value.values()) if list(value) == indices else []
        elif isinstance(value, list):
            columns[name] = value
        if not columns.get(name):
            return None
    return columns


class _MemberRows:
    """The rows of an object: those of its array of objects, or of its columns.

    `key` is that of the array, None for columns; it is known after the last row.
    """

    def __init__(self, scanner: _Scanner) -> None:
        self.scanner = scanner
        self.key: str | None = None

    def read(self, others: list[str]) -> NumberedRows:
        """Yields the rows; adds the keys that are left out to `others`."""
        members: dict[str, Any] = {}
        """Those before the array: columns, unless an array of rows follows."""
        for name, starts_rows in _members(self.scanner):
            if not starts_rows:
                value = self.scanner.value()
                if self.key is None:
                    members[name] = value
                others.append(name)
            elif self.key is not None:
                message = f"the object has two arrays of objects, {self.key!r} and {name!r}"
                raise self.scanner.error(f"{message}; write one of them to its own file")
            else:
                rows, length = self.scanner.objects_of_array(), _common_length(members)
                first_rows = [] if length is None else list(islice(rows, length + 1))
                if len(first_rows) == length:
                    members[name] = [row for _, row in first_rows]  # a column of objects
                    continue
                self.key, members = name, {}
                yield from first_rows
                yield from rows
        if self.key is None:
            yield from self._rows_of_columns(members)

    def _rows_of_columns(self, members: dict[str, Any]) -> NumberedRows:
        columns = _columns(members)
        if columns and _common_length(members) is not None:
            for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
                yield number, dict(zip(columns, values, strict=True))
            return
        if columns:
            listed = ", ".join(f"{name}: {len(values):,}" for name, values in list(columns.items())[:8])
            message = f"the object holds columns with different numbers of values ({listed}), so they make no rows"
        else:
            message = "the object holds no array of objects"
        advice = 'write [{...}, {...}], one object per row (in pandas: frame.to_json(file, orient="records"))'
        raise DataError(Problem(f"{message}; {advice}", str(self.scanner.path)))


def _common_length(members: dict[str, Any]) -> int | None:
    """The number of values of each column; None for members that are no columns, or of different lengths."""
    lengths = {len(values) for values in (_columns(members) or {}).values()}
    return lengths.pop() if len(lengths) == 1 else None


def _members(scanner: _Scanner) -> Iterator[tuple[str, bool]]:
    """Yields the keys of the object at the scanner, each with whether its value is an array whose first element is an
    object. The caller reads the value before the next key."""
    scanner.skip("{")
    first = True
    while scanner.peek() != "}":
        if not first:
            scanner.skip(",")
        first = False
        name = scanner.value()
        if not isinstance(name, str):
            raise scanner.error("expected the name of a key in double quotes")
        scanner.skip(":")
        yield name, scanner.starts_array_of_objects()
    scanner.skip("}")


class _Scanner:
    """Reads JSON values one after the other, with little more text in memory than the longest of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chunks = text_chunks(path, detect_encoding(path, may_guess=False))
        self._text = ""
        self._position = 0
        self.line = 1

    def error(self, message: str) -> DataError:
        return DataError(Problem(message, str(self.path), self.line))

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            match = _NO_WHITE_SPACE.search(self._text, self._position)
            end = match.start() if match else len(self._text)
            self.line += self._text.count("\n", self._position, end)
            self._position = end
            if match:
                return match[0]
            if not self._read_more():
                return ""

    def starts_array_of_objects(self) -> bool:
        """Whether an array begins here whose first element is an object."""
        if self.peek() != "[":
            return False
        while not (match := _NO_WHITE_SPACE.search(self._text, self._position + 1)) and self._read_more():
            pass
        return match is not None and match[0] == "{"

    def skip(self, expected: str) -> None:
        """Moves past the character `expected`. Raises DataError if another one follows."""
        character = self.peek()
        if character != expected:
            shown = repr(character) if character else "the end of the file; is it truncated?"
            raise self.error(f"is not JSON: expected {expected!r}, not {shown}")
        self._position += 1

    def objects_of_array(self) -> NumberedRows:
        """Yields the objects of the array that begins here, each after its line."""
        self.skip("[")
        first = True
        while self.peek() != "]":
            if not first:
                self.skip(",")
                if self.peek() == "]":
                    raise self.error("is not JSON: there is a comma after the last object; remove it")
            first = False
            line = self.line
            row = self.value()
            if not isinstance(row, dict):
                message = f'expected an object, as in {{"column": "value"}}, not {json.dumps(row)[:40]}'
                raise DataError(Problem(message, str(self.path), line))
            yield line, row
        self.skip("]")

    def value(self) -> Any:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                end = _DECODER.raw_decode(self._text, self._position)[1]
            except json.JSONDecodeError as error:
                self._read_rest_of_value(error)
                continue
            except RecursionError:
                raise self.error(TOO_DEEP) from None
            except ValueError:  # Python's limit on the digits of an integer
                raise self.error("has an integer of more than 4,300 digits; write it as text, in quotes") from None
            if end < len(self._text) or self._text[end - 1] in '}]"' or not self._read_more():
                break  # otherwise a number may go on in the next part
            self._position = 0
        text = self._text[self._position : end]
        try:
            value = parse(text)
        except StrictJsonError as error:
            raise self.error(str(error)) from None
        self.line += text.count("\n")
        self._position = end
        return value

    def _read_rest_of_value(self, error: json.JSONDecodeError) -> None:
        """Reads on, if the value may only be incomplete. The text doubles each time, so that the cost stays linear."""
        is_incomplete = "Unterminated" in error.msg or error.pos >= len(self._text) - _LONGEST_PART
        if not is_incomplete:
            raise self._invalid(error)
        if len(self._text) - self._position > MAX_LINE_BYTES:
            raise self.error(f"a value exceeds {MAX_LINE_BYTES >> 20} MB")
        length = 2 * (len(self._text) - self._position)
        if not self._read_more():
            raise self._invalid(error)
        while len(self._text) < length and self._read_more():
            pass

    def _invalid(self, error: json.JSONDecodeError) -> DataError:
        line = self.line + self._text.count("\n", self._position, error.pos)
        if not self._text[error.pos :].strip() or "Unterminated" in error.msg:
            message = "the file ends before its JSON value does; is it truncated?"
        else:
            column = error.pos - self._text.rfind("\n", 0, error.pos)
            message = f"is not JSON: {error.msg[0].lower()}{error.msg[1:]} in column {column}"
        return DataError(Problem(message, str(self.path), line))

    def _read_more(self) -> bool:
        """Appends the next part of the file to the text that has not been read; False at its end."""
        chunk = next(self._chunks, "")
        if chunk:
            self._text = self._text[self._position :] + chunk
            self._position = 0
        return bool(chunk)
