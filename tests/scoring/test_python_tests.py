"""Splitting, completion, validation and instrumentation of the unit tests of a row."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import DataError
from pipelines.scoring.python_tests import instrument, row_tests, split_tests


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        ("assert f(1)\nassert f(2)", ["assert f(1)", "assert f(2)"]),
        ("# two\n\nassert f(1)\n\nassert f(2)\n", ["# two\n\nassert f(1)", "assert f(2)"]),
        ("x = [1,\n     2]\nassert f(x)\nassert f(2)", ["x = [1,\n     2]\nassert f(x)", "assert f(2)"]),
        ("for x in (1, 2):\n    assert f(x)", ["for x in (1, 2):\n    assert f(x)"]),
        ("assert f(1); assert f(2)", ["assert f(1); assert f(2)"]),
        ("assert f(1)\r\nassert '\u2028'\r\n", ["assert f(1)", "assert '\u2028'"]),
        ("assert f(1\nassert f(2)", ["assert f(1", "assert f(2)"]),
        ("", []),
        ("# nothing", []),
    ],
)
def test_split_tests(text: str, tests: list[str]) -> None:
    assert split_tests(text) == tests


ONE = ["assert f(1) == 2"]
CALLED = {
    # tests, the column entry_point, the tests that are run
    "a list": (ONE, None, ONE),
    "a tuple": (tuple(ONE), None, ONE),
    "lines": ("assert f(1) == 2\nassert f(2) == 3", None, ["assert f(1) == 2", "assert f(2) == 3"]),
    "a list as JSON in a cell": ('["assert f(1) == 2", "assert f(\\"a\\") == 3"]', None, [*ONE, 'assert f("a") == 3']),
    "a list as Python writes it": ("['assert f(1) == 2', \"assert f('a') == 3\"]", None, [*ONE, "assert f('a') == 3"]),
    "a tuple as Python writes it": ("('assert f(1) == 2',)", None, ONE),
    "a string as JSON": ('"assert f(1) == 2"', None, ONE),
    "preparation in its own entry": (["x = 1", "assert f(x) == 2"], None, ["x = 1\nassert f(x) == 2"]),
    "check(candidate)": ("def check(candidate):\n    assert candidate(1) == 2", "f", "check(f)"),
    "check(candidate) in a list": (["def check(candidate):\n    assert candidate(1) == 2"], "f", "check(f)"),
    "check called": (
        "def check(c):\n    assert c(1) == 2\ncheck(f)",
        None,
        ["def check(c):\n    assert c(1) == 2\ncheck(f)"],
    ),
    "helper of check": ("def same(a, b):\n    assert a == b\ndef check(c):\n    same(c(1), 2)", "f", "check(f)"),
    "test function": ("def test_f():\n    assert f(1) == 2", None, "test_f()"),
    "test function with a default": ("def test_f(n=1):\n    assert f(n) == 2", None, "test_f()"),
    "async test function": (
        "async def test_f():\n    assert await f(1) == 2",
        None,
        "__import__('asyncio').run(test_f())",
    ),
    "TestCase": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)",
        None,
        "T('test_f').debug()",
    ),
    "TestCase with a runner": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)\n"
        "if __name__ == '__main__':\n    unittest.main()",
        None,
        "T('test_f').debug()",
    ),
    "plain test class": ("class TestF:\n    def test_f(self):\n        assert f(1) == 2", None, "TestF().test_f()"),
    "main guard": ("if __name__ == '__main__':\n    assert f(1) == 2", None, ONE),
    "function of a library": (
        "import numpy as np\nnp.testing.assert_allclose(f(1), 2)",
        None,
        ["import numpy as np\nnp.testing.assert_allclose(f(1), 2)"],
    ),
    "expected exception": (
        "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
        None,
        ["try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False"],
    ),
    "name of a builtin": (["assert sum(1) == 2"], None, ["assert sum(1) == 2"]),
    "imported by name": (
        ["from solution import f", "assert f(1) == 2"],
        None,
        ["from solution import f\nassert f(1) == 2"],
    ),
}


@pytest.mark.parametrize(("tests", "entry_point", "run"), CALLED.values(), ids=CALLED.keys())
def test_row_tests(tests: Any, entry_point: str | None, run: list[str] | str) -> None:
    tests_of_row = row_tests({"tests": tests, "entry_point": entry_point})
    assert tests_of_row == run if isinstance(run, list) else tests_of_row[-1].split("\n")[-1] == run


NOTHING = {
    # tests, a part of the message
    "absent": (None, "needs a column `tests`"),
    "empty list": ([], "needs a column `tests`"),
    "empty list in a cell": ("[]", "needs a column `tests`"),
    "empty text": ("", "needs a column `tests`"),
    "empty strings": (["", " "], "needs a column `tests`"),
    "missing value": (float("nan"), "needs a column `tests`"),
    "number": (3, "needs a column `tests`"),
    "number in a cell": ("3", "needs a column `tests`"),
    "list of numbers": ([1], "needs a column `tests`"),
    "inputs and outputs": ({"inputs": ["1"], "outputs": ["2"]}, "needs a column `tests`"),
    "inputs and outputs in a cell": ('{"inputs": ["1"], "outputs": ["2"]}', "needs a column `tests`"),
    "list of lists": ([["assert f(1) == 2"]], "needs a column `tests`"),
    "comment": ("# assert f(1) == 2", "assert nothing"),
    "import": ("import math", "assert nothing"),
    "docstring": ('"""Tests of f."""\nf(1)', "assert nothing"),
    "bare call": ("f(1)", "assert nothing"),
    "printed": ("print(f(1) == 2)", "assert nothing"),
    "bare comparison": (
        ["f(1) == 2"],
        "a line of the tests is a bare expression, such as `f(1) == 2`; write `assert` before it",
    ),
    "bare comparison among asserts": ("assert f(1) == 2\nf(2) == 3", "is a bare expression"),
    "bare and": ("f(1) == 2 and f(2) == 3", "is a bare expression"),
    "assignment": ("ok = f(1) == 2", "assert nothing"),
    "assert in parentheses": ("assert (f(1) == 2, 'wrong')", "never fails; remove the parentheses"),
    "assert True": ("f(1)\nassert True", "assert nothing"),
    "assert a text": ("f(1)\nassert 'f(1) == 2'", "assert nothing"),
    "assert a lambda": ("assert lambda: f(1) == 2", "assert nothing"),
    "assert a constant comparison": ("f(1)\nassert 1 == 1", "assert nothing"),
    "names its own values": ("x = 2\nassert x == 2", "the tests name nothing that the code under test defines"),
    "defines what it tests": (
        "def f(x):\n    return 2\nassert f(1) == 2",
        "the tests name nothing that the code under test defines",
    ),
    "tests the library": ("import math\nassert math.pi > 3", "the tests name nothing that the code under test defines"),
    "check never called": (
        "def check(candidate):\n    assert candidate(1) == 2",
        "def check(candidate) is never called; add a column `entry_point`",
    ),
    "check never called, in a cell": ('["def check(candidate):\\n    assert candidate(1) == 2"]', "is never called"),
    "check and an assert": ("def check(c):\n    assert c(1) == 2\nassert f(1) == 2", "def check(c) is never called"),
    "two arguments": (
        "def check(a, b):\n    assert a(1) == b",
        "def check(a, b) is never called; add the line that calls it",
    ),
    "check that asserts nothing": ("def check(candidate):\n    candidate(1) == 2\ncheck(f)", "assert nothing"),
    "test function that asserts nothing": ("def test_f():\n    f(1)", "assert nothing"),
    "class without tests": ("class T:\n    def run(self):\n        assert f(1) == 2", "class T is never used"),
    "pytest": (
        "import pytest\nwith pytest.raises(ValueError):\n    f(-1)",
        "import pytest, which the sandbox does not have",
    ),
    "doctest": (">>> f(1)\n2", "are not Python (line 1)"),
    "a list of numpy's": ("['assert f(1) == 2'\n 'assert f(2) == 3']", "are not Python"),
    "broken": ("assert f(1) = 2", "are not Python (line 1)"),
    "broken, further down": ("assert f(1) == 2\nassert f(", "are not Python (line 2)"),
}


@pytest.mark.parametrize(("tests", "message"), NOTHING.values(), ids=NOTHING.keys())
def test_tests_that_assert_nothing_are_rejected(tests: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        row_tests({} if tests is None else {"tests": tests})
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_another_column_is_named() -> None:
    with pytest.raises(DataError, match="the row has 'test_list': rename it"):
        row_tests({"test_list": ONE})


@pytest.mark.parametrize(
    ("test", "run"),
    [
        ("assert f(1) == 2", "assert P_compare(f(1), '==', 2)"),
        ("assert f(1) in (1, 2), 'x'", "assert P_compare(f(1), 'in', (1, 2)), 'x'"),
        ("assert 1 < f(1) < 2", "assert P_check(1 < f(1) < 2)"),
        ("assert not f(1)", "assert P_check(not f(1))"),
        ("assert (y := f(1)) is None", "assert P_compare((y := f(1)), 'is', None)"),
        ("assert True", "assert True"),
        ("def t():\n    assert f(1)", "def t():\n    assert P_check(f(1))"),
        ("self.assertEqual(f(1), 2)", "P_counted(self.assertEqual)(f(1), 2)"),
        (
            "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass",
            "try:\n    f(1)\n    assert False\nexcept ValueError:\n    P_counted()\n    pass",
        ),
        (
            "try:\n    assert f(1)\nexcept Exception:\n    pass",
            "try:\n    assert P_check(f(1))\nexcept Exception:\n    pass",
        ),
        ("assert f(", "assert f("),
    ],
)
def test_instrument(test: str, run: str) -> None:
    assert instrument(test, "P_") == run
