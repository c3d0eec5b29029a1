"""Extraction of Python code from a completion."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

MAX_PARSE_CHARS = 20_000
"""Maximum length of a completion that is searched for code: parsing takes less than a second."""

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(?P<block>.*?)(?P<end>^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_MAX_PARSE_ATTEMPTS = 10  # limits the number of calls of the parser for a text with many syntax errors
_CODE_START = re.compile(r"^(?:(?:def|async def|class|import|from)\s|@)", re.MULTILINE)


def extract_code(completion: str) -> str:
    """The Python code of a completion: its first fenced block; else the longest part that parses, from the first line
    that begins a definition or an import; else the unchanged text."""
    starts = [match.start() for match in _CODE_START.finditer(completion)]
    fence = _FENCE.search(completion)
    # A single fence below code closes a block that the prompt had opened.
    if fence and (fence["end"] or not starts or fence.start() < starts[0]):
        return textwrap.dedent(fence["block"]).strip("\n")
    if len(completion) > MAX_PARSE_CHARS or isinstance(parse_python(completion), ast.Module):
        return completion
    for start in starts[:_MAX_PARSE_ATTEMPTS]:
        if code := _longest_that_parses(completion[start:]):
            return code
    return completion[starts[0] :] if starts else completion


def parse_python(source: str) -> ast.Module | int:
    """The syntax tree, or the line number of the syntax error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1


def _longest_that_parses(text: str) -> str:
    """The longest prefix of complete lines that is valid Python; "" if a few attempts find none."""
    lines = split_lines(text)
    for _ in range(_MAX_PARSE_ATTEMPTS):
        code = "\n".join(lines).rstrip()
        parsed = parse_python(code)
        if isinstance(parsed, ast.Module):
            return code
        lines = lines[: min(len(lines) - 1, parsed)]  # no line after the error can correct it
    return ""


def split_lines(text: str) -> list[str]:
    """The lines as the parser counts them: `str.splitlines` also splits at characters that a string may contain."""
    return re.split(r"\r\n?|\n", text)
