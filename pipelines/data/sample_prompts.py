"""Sample prompts: prompts without a task's template, for the report and for `alfine predict --raw`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.data.examples import Example
from pipelines.data.readers import RowErrors, numbered_rows, text_column
from pipelines.data.templates import to_text
from pipelines.data.text_files import data_suffix
from pipelines.errors import DataError

COLUMNS = ("prompt", "title", "max_new_tokens")


def load_sample_prompts(path: Path, system: str | None = None) -> list[Example]:
    """The sample prompts of the report: examples without a task and a completion, with the columns COLUMNS.

    Raises DataError with file and row for every row that is not valid.
    """
    samples, errors = [], RowErrors()
    for line_number, row in numbered_rows(path):
        try:
            if unknown := sorted(set(row) - set(COLUMNS)):
                raise DataError(f"unknown column {unknown[0]!r}; a sample prompt has {', '.join(COLUMNS)}")
            samples.append(parse_sample_prompt(row, path, line_number, system))
        except DataError as error:
            errors.add(str(path), line_number, str(error))
    errors.raise_if_any()
    return samples


def parse_sample_prompt(row: Mapping[str, Any], file: Path, line_number: int, system: str | None = None) -> Example:
    """The example of one row, which may have other columns than COLUMNS. `line_number` is its line in `file`.

    Raises DataError, without a location, if the prompt or the title is not a text, or max_new_tokens is not a positive
    integer.
    """
    prompt = text_column(row, "prompt")
    if prompt is None:
        raise DataError(f"a sample prompt needs a text in `prompt`; the row has: {', '.join(row) or 'no column'}")
    to_text("prompt", prompt)
    title = row.get("title")
    if title is not None and not isinstance(title, str):
        raise DataError(f"title is {title!r:.60}; write a text, or leave it out")
    max_new_tokens = _parse_max_new_tokens(row.get("max_new_tokens"), is_csv=data_suffix(file) in (".csv", ".tsv"))
    return Example(
        prompt=prompt,
        system=system,
        file=str(file),
        row_number=line_number,
        fields=row,
        max_new_tokens=max_new_tokens,
        title=title or None,
    )


def _parse_max_new_tokens(value: Any, is_csv: bool) -> int | None:
    if value is None or (value == "" and is_csv):
        return None
    if isinstance(value, str) and value.isdecimal() and len(value) < 10 and is_csv:
        value = int(value)  # every value of a CSV file is a text
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"max_new_tokens is {value!r:.60}; write a positive integer, as in 32")
    return int(value)
