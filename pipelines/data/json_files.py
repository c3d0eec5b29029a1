"""JSON files: an array of objects, or an object that holds one such array. They are read in parts, row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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

    The array is the whole file, or the only array of objects of the file's object; its other keys are left out.
    Raises DataError, with the line, for invalid JSON, for an element that is not an object, and for an object with
    several arrays of objects or none.
    """
    scanner = _Scanner(path)
    if scanner.peek() == "[":
        yield from scanner.objects_of_array()
    elif scanner.peek() == "{":
        yield from _objects_of_object(scanner)
    else:
        raise scanner.error("expected a JSON array of objects, [{...}, {...}]")
    if scanner.peek():
        raise scanner.error("there is text after the end of the JSON value; is it two files in one?")


def array_keys(path: Path) -> tuple[str | None, list[str]]:
    """The key of the object's array of objects, None if the file is an array; and the keys that are left out."""
    scanner = _Scanner(path)
    if scanner.peek() != "{":
        return None, []
    key, others = None, []
    for name, starts_rows in _members(scanner):
        if starts_rows:
            key = name
            for _ in scanner.objects_of_array():
                pass
        else:
            scanner.value()
            others.append(name)
    return key, others


def is_array(path: Path) -> bool:
    """Whether the file's first character is that of an array."""
    return _Scanner(path).peek() == "["


def is_json_lines(path: Path) -> bool:
    """Whether the file is a sequence of objects, or one object without an array of objects on one line."""
    scanner = _Scanner(path)
    if scanner.peek() != "{":
        return False
    try:
        value = scanner.value()
    except DataError:
        return False  # the reader reports it
    if scanner.peek() == "{":
        return True
    return scanner.peek() == "" and scanner.line == 1 and not any(map(_is_array, value.values()))


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _objects_of_object(scanner: _Scanner) -> NumberedRows:
    rows_key: str | None = None
    for name, starts_rows in _members(scanner):
        if not starts_rows:
            scanner.value()
            continue
        if rows_key is not None:
            raise scanner.error(
                f"the object has two arrays of objects, {rows_key!r} and {name!r}; write one of them to its own file"
            )
        rows_key = name
        yield from scanner.objects_of_array()
    if rows_key is None:
        raise DataError(
            Problem(
                "the object holds no array of objects; write [{...}, {...}], one object per row "
                '(in pandas: frame.to_json(file, orient="records"))',
                str(scanner.path),
            )
        )


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
