"""Free prompts: rows whose column `prompt` is asked as it stands, without a task's template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.data.readers import RowErrors, numbered_rows, text_column
from pipelines.data.templates import to_text
from pipelines.errors import DataError

COLUMNS = ("prompt", "title", "max_new_tokens")


def parse_sample_prompt(row: Mapping[str, Any], file: Path) -> tuple[str, int | None]:
    """The prompt of a row and its max_new_tokens, if it has one. Raises DataError for a prompt or a title that is no text,
    or a bound that is no whole number from 1 on."""
    prompt = text_column(row, "prompt")
    if prompt is None:
        raise DataError(f"a free prompt needs a text in `prompt`; the row has: {', '.join(row) or 'no column'}")
    to_text("prompt", prompt)
    title = row.get("title")
    if title is not None and not isinstance(title, str):
        raise DataError(f"title is {title!r:.60}; write a text, or leave it out")
    return prompt, _bound(row.get("max_new_tokens"), file)


def _bound(value: Any, file: Path) -> int | None:
    if value is None or (value == "" and file.suffix.lower() == ".csv"):
        return None
    if isinstance(value, str) and value.isdecimal() and len(value) < 10 and file.suffix.lower() == ".csv":
        value = int(value)  # a CSV file has no numbers, only texts of digits
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"max_new_tokens is {value!r:.60}; write a whole number from 1 on, as in 32")
    return int(value)


def load_sample_prompts(path: Path) -> list[dict[str, Any]]:
    """Free prompts of the report: rows with `prompt` and, if wished, `title` and `max_new_tokens`. Raises DataError with
    file and row for each mistake."""
    found, errors = [], RowErrors()
    for number, row in numbered_rows(path):
        try:
            if unknown := sorted(set(row) - set(COLUMNS)):
                raise DataError(f"unknown key {unknown[0]!r}; a probe has {', '.join(COLUMNS)}")
            _, bound = parse_sample_prompt(row, path)
        except DataError as error:
            errors.add(str(path), number, str(error))
            continue
        found.append({"prompt": row["prompt"], "title": row.get("title") or None, "max_new_tokens": bound})
    errors.raise_if_any()
    return found
