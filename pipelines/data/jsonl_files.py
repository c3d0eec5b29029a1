"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from pipelines.data.text_files import BYTE_ORDER_MARK, NumberedRows, detect_encoding, text_lines
from pipelines.errors import DataError, Problem
from pipelines.storage.strict_json import StrictJsonError, parse


def read_jsonl(path: Path, wanted: Container[int] | None = None) -> NumberedRows:
    """Yields the objects of the lines that are not blank; {} for those whose index is not in `wanted`.

    Raises DataError with the line of the first invalid one.
    """
    index = -1
    lines = text_lines(path, detect_encoding(path, may_guess=False))
    for line_number, line in enumerate(lines, start=1):
        line = line.lstrip(BYTE_ORDER_MARK)  # concatenated files have one at the start of each
        if not line.strip():
            continue
        index += 1
        yield line_number, parse_line(line, path, line_number) if wanted is None or index in wanted else {}


def parse_line(line: str, path: Path, line_number: int) -> dict[str, Any]:
    """The object of one line. Raises DataError, with the line, if it is none."""
    try:
        row = parse(line)
    except json.JSONDecodeError as error:
        message = f"is not JSON: {json_hint(error)}"
        raise DataError(Problem(message, str(path), line_number)) from None
    except StrictJsonError as error:
        raise DataError(Problem(str(error), str(path), line_number)) from None
    if not isinstance(row, dict):
        message = 'expected a JSON object per line, as in {"column": "value", ...}'
        raise DataError(Problem(message, str(path), line_number))
    return row


def json_hint(error: json.JSONDecodeError) -> str:
    """The advice for a text that is not JSON."""
    line, rest = error.doc, error.doc[error.pos :].strip()
    if "Extra data" in error.msg and rest.startswith(","):
        return "there is a comma after the object; remove it"
    if "Extra data" in error.msg:
        return f"a second value begins in column {error.colno}; put it on its own line"
    if "'" in line[error.pos : error.pos + 1]:
        return "use double quotes around names and texts, not single quotes"
    if "Unterminated" in error.msg or not rest:
        return "the line ends before its object does; is the file truncated?"
    if "control character" in error.msg:
        character = ascii(line[error.pos])
        return f"unescaped control character {character} in column {error.colno}; write its escape, such as \\t"
    return f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}; each line holds one object, {{...}}"
