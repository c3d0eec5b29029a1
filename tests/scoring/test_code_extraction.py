"""Extraction of Python code from a completion."""

from __future__ import annotations

import time

import pytest

from pipelines.scoring.code_extraction import extract_code

EXTRACTIONS = {
    "fence with language": ("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1"),
    "fence without language": ("```\nx = 1\n```", "x = 1"),
    "first of two": ("```py\na = 1\n```\nor\n```py\na = 2\n```", "a = 1"),
    "indented fence": (
        "1. So:\n   ```python\n   def f():\n       return 1\n   ```",
        "def f():\n    return 1",
    ),
    "fence cut off": ("Here:\n```python\ndef f():\n    return 1", "def f():\n    return 1"),
    "fence opened in the prompt": (
        "def f():\n    return 1\n```\nThis returns one.",
        "def f():\n    return 1",
    ),
    "prose around": (
        "Here is it.\n\ndef f():\n    return 1\n\nIt returns one, as requested.\nYou're welcome.",
        "def f():\n    return 1",
    ),
    "imports and decorators": (
        "The code:\nimport functools\n@functools.cache\ndef f():\n    return 1",
        "import functools\n@functools.cache\ndef f():\n    return 1",
    ),
    "prose that begins like an import": (
        "from here on, see\ndef f():\n    return 1",
        "def f():\n    return 1",
    ),
    "second function cut off": ("def f():\n    return 1\n\ndef g(x):\n    y = [1,", "def f():\n    return 1"),
    "constants above": ("N = 3\ndef f():\n    return N", "N = 3\ndef f():\n    return N"),
    "broken code": ("Code:\ndef f(:\n    return 1", "def f(:\n    return 1"),
    "line separator in a string": (
        "So:\ndef f():\n    return 'a\u2028b'\nok?",
        "def f():\n    return 'a\u2028b'",
    ),
    "carriage returns": ("So:\r\ndef f():\r\n    return 1\r\nHave fun!", "def f():\n    return 1"),
    "no code": ("I cannot do that.", "I cannot do that."),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("completion", "code"), EXTRACTIONS.values(), ids=EXTRACTIONS.keys())
def test_extract_code(completion: str, code: str) -> None:
    assert extract_code(completion) == code


def test_extraction_is_fast_on_texts_with_many_syntax_errors() -> None:
    start = time.perf_counter()
    for text in ("@a\n" * 500, "def f():\n" * 2000, "import x!\n" * 2000, "`" * 10**5, "x = (" * 10**5):
        extract_code(text)
    assert time.perf_counter() - start < 2
