"""Custom metrics: import, a trial call before the training, and finite results only."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.scoring.custom_metrics import as_finite_float, call_metric, load_metric, try_metric


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 100.0),
        (False, 0.0),
        (np.bool_(True), 100.0),
        (np.False_, 0.0),
        (np.array(True), 100.0),
        (np.float32(0.5), 0.5),
        (np.float16(2), 2.0),
        (np.longdouble(1.5), 1.5),
        (np.int64(3), 3.0),
        (np.uint8(200), 200.0),
        (np.array(0.25), 0.25),
        (Fraction(1, 4), 0.25),
        (Decimal("0.1"), 0.1),
        (7, 7.0),
    ],
)
def test_numbers_of_all_types(value: Any, expected: float) -> None:
    result = call_metric(lambda *_: value, "c", "r", {})
    assert (result, type(result)) == (expected, float)


class Scalar:
    """A scalar like those of torch: an array without axes, with its value in item()."""

    shape = ()

    def item(self) -> float:
        return 0.75


def test_a_scalar_of_another_library() -> None:
    assert as_finite_float(Scalar()) == 0.75


@pytest.mark.parametrize(
    "value",
    [
        None,
        "3",
        math.nan,
        -math.inf,
        np.float32("nan"),
        np.float64("inf"),
        np.array([1.0]),
        np.array([1.0, 2.0]),
        [1.0],
        (1,),
        1j,
        np.complex64(1),
        Decimal("NaN"),
        Decimal("sNaN"),
        10**400,
        np.datetime64("2024-01-01"),
        np.str_("1"),
        np.ma.masked,
        np.zeros((40, 40)),
        "x" * 999,
        lambda: 3,
    ],
)
def test_values_that_are_not_finite_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="returned .*, not a finite number") as error:
        call_metric(lambda *_: value, "c", "r", {})
    assert "\n" not in str(error.value) and len(str(error.value)) < 150


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(text: str) -> None:
        (tmp_path / "mine.py").write_text(text)

    yield write
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(completion, reference, row): return 1.0", None),
        ("def f(completion, reference, row, strict=False): return True", None),
        ("def f(*given): return len(given)", None),
        ("class f:\n    def __new__(cls, completion, reference, row): return 3", None),
        (
            "def f(completion, reference, row): return row['lenght']",
            "raised KeyError: 'lenght', for this row's reference",
        ),
        (
            "def f(completion, reference, row): return completion.split()[0] == 'a'",
            "raised IndexError: .* for an empty completion",
        ),
        (
            "def f(completion, reference, row): return 1 / len(completion)",
            "raised ZeroDivisionError: .* for an empty completion",
        ),
        (
            "def f(completion, reference, row): return 'good'",
            "returned 'good', not a finite number, for this row's reference",
        ),
        ("def f(completion, reference, row): pass", "returned None, not a finite number"),
        ("def f(completion, reference, row): raise ValueError('one\\ntwo')", "raised ValueError: one two, for"),
        ("def f(completion, reference, row): exit(0)", "raised SystemExit: 0, for"),
        ("def f(completion, reference, row): yield 1", "returned <generator object"),
    ],
)
def test_a_function_is_tried_on_a_row(module: Any, body: str, message: str | None) -> None:
    module(body)
    problem = try_metric("mine:f", "a b", {"length": 3})
    if message is None:
        assert problem is None
        return
    import re

    assert problem is not None and re.search(f"^metric mine:f {message}", problem) and "\n" not in problem
    assert problem.endswith("correct the function: it must return a finite number for every completion")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def f(completion, reference): return 1",
            r"takes \(completion, reference\); write def f\(completion, reference, row\):",
        ),
        ("def f(completion, reference, row, model): return 1", r"takes \(completion, reference, row, model\)"),
        ("def f(*, completion, reference, row): return 1", "is called with a completion, a reference and a row"),
        ("async def f(completion, reference, row): return 1", "is asynchronous; write def without async"),
        ("raise SystemExit(0)", r"cannot import 'mine' \(SystemExit: 0\)"),
        ("import no_such\n", "ModuleNotFoundError"),
        ("f = 3", "has no function 'f'"),
    ],
)
def test_a_function_that_cannot_be_called(module: Any, body: str, message: str) -> None:
    module(body)
    with pytest.raises(ConfigError, match=message) as error:
        load_metric("mine:f")
    assert "\n" not in str(error.value)
