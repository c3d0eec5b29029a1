"""Writes a job as YAML with comments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.messages import KeyPath
from pipelines.config.yaml_parser import parse_yaml

TOP_LEVEL_ORDER = (
    "pipeline",
    "model_type",
    "base_model",
    "adapter",
    "quantization",
    "preprocessing",
    "trainer",
    "generation",
    "backend",
)
SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "config.schema.json"
"""The JSON Schema of a config in a clone of the repository."""
COMMENT_COLUMN = 44
"""The column that comments on one line start at, if the line is shorter."""


def editor_line(output: Path | None) -> list[str]:
    """The line that names the JSON Schema for editors, if one is where the file can name it: beside it, or in the same
    clone of the repository."""
    if output is None:
        return []
    folder = output.absolute().parent.resolve()
    if (folder / SCHEMA_FILE.name).is_file():
        return [f"yaml-language-server: $schema={SCHEMA_FILE.name}"]
    if SCHEMA_FILE.is_file() and folder.is_relative_to(SCHEMA_FILE.parents[1]):
        return [f"yaml-language-server: $schema={Path(os.path.relpath(SCHEMA_FILE, folder)).as_posix()}"]
    return []


def to_yaml(config: Mapping[str, Any], comments: Mapping[KeyPath, str], header: list[str]) -> str:
    """The YAML of a job.

    comments: key → the comment on its line.
    header: lines of comments at the top.
    """
    ordered = {key: config[key] for key in TOP_LEVEL_ORDER if key in config} | dict(config)
    lines = [f"# {line}".rstrip() for line in header]
    for key, value in ordered.items():
        if lines:
            lines.append("")
        lines += _entry(str(key), value, (key,), comments, 0)
    text = "\n".join(lines) + "\n"
    if parse_yaml(text, "job").value != config:
        raise AssertionError("the YAML does not say what it was written from")
    return text


def _entry(key: str, value: Any, path: KeyPath, comments: Mapping[KeyPath, str], indent: int) -> Iterator[str]:
    """The lines of one key."""
    start = " " * indent + _scalar(key) + ":"
    comment = comments.get(path)
    if isinstance(value, Mapping) and value and not _fits_on_a_line(value, path, comments):
        yield _with_comment(start, comment)
        for name, child in value.items():
            yield from _entry(str(name), child, (*path, name), comments, indent + 2)
    elif isinstance(value, str) and (block := _block(value)) is not None:
        indicator, rows = block
        yield _with_comment(f"{start} {indicator}", comment)
        for row in rows:
            yield " " * (indent + 2) + row if row else ""
    else:
        yield _with_comment(f"{start} {_flow(value)}", comment)


def _with_comment(line: str, comment: str | None) -> str:
    if not comment:
        return line
    text = "".join(character if character.isprintable() else " " for character in comment)
    return f"{line.ljust(COMMENT_COLUMN - 1)} # {text}"


def _fits_on_a_line(value: Mapping[str, Any], path: KeyPath, comments: Mapping[KeyPath, str]) -> bool:
    """Whether a section is short and has no comments, so that it is written as `{a: 1, b: 2}`."""
    has_comments = any(known[: len(path)] == path and known != path for known in comments)
    plain = all(not isinstance(child, Mapping | list) for child in value.values())
    return plain and len(path) > 1 and not has_comments and len(_flow(value)) <= 70


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(key))}: {_flow(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A number, truth value, null or text. A text has quotes where YAML would read it as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./@+-]*(:[A-Za-z0-9_./@+-]+)*", text) and _is_plain(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    if quoted.isprintable():
        return quoted
    return yaml.safe_dump(text, width=float("inf"), allow_unicode=False, default_style='"').strip()


def _is_plain(text: str) -> bool:
    """Whether the text is read as itself without quotes, also between brackets."""
    return bool(parse_yaml(f"[{text}]", "job").value == [text])


def _number(value: float) -> str:
    """A number in its shortest form: 0.0002, 1e-8."""
    text = format(value, ".12g")
    if float(text) != value:
        text = repr(value)
    return re.sub(r"e([+-])0+(\d)", r"e\1\2", text).replace("e+", "e") if "e" in text else text


def _block(text: str) -> tuple[str, list[str]] | None:
    """The indicator and the lines of a text as a literal block; None if it is better in quotes, or must be."""
    if text.count("\n") < 1 or text.strip() == "" or text.startswith((" ", "\n", "\t")):
        return None
    body = text.rstrip("\n")
    num_newlines = len(text) - len(body)
    rows = body.split("\n")
    if num_newlines > 1 or not all(row.isprintable() and row == row.rstrip() for row in rows):
        return None
    return ("|" if num_newlines else "|-"), rows
