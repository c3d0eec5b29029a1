"""A metric of the user's: the function `module:function(completion, reference, row)` of the folder where alfine is started."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError

MetricFunction = Callable[[str, str, dict[str, Any]], Any]


def load_metric(name: str) -> MetricFunction:
    """The function that `module:function` names. Raises ConfigError where there is none, or where it cannot be called with
    a completion, a reference and a row."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    _check_place(name, module_name, Path(here))
    sys.path.insert(0, here)  # the user's modules stand beside their data, not in the installed packages
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"metric {name}: cannot import {module_name!r} ({describe_error(error)}); "
            f"modules are looked for in the folder where alfine is started"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        near = difflib.get_close_matches(function_name, vars(module), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"metric {name}: module {module_name!r} has no function {function_name!r}{advice}")
    _check_signature(name, function)
    return function


def call_metric(function: MetricFunction, completion: str, reference: str, row: Mapping[str, Any]) -> float:
    """What the function returns, True being 100 and False 0. Raises ValueError, with the rest of the message, where
    it raises or returns anything but a finite number."""
    try:
        value = function(completion, reference, dict(row))
    except (Exception, SystemExit) as error:
        raise ValueError(f"raised {describe_error(error)}") from error
    try:
        return as_finite_float(value, bool_is=100.0)
    except ValueError as error:
        raise ValueError(f"returned {error}") from None


def try_metric(name: str, reference: str, row: Mapping[str, Any]) -> str | None:
    """What goes wrong where the metric scores a row whose completion is the reference, and one whose completion is empty; None
    where nothing does. Raises ConfigError as `load_metric` does."""
    function = load_metric(name)
    for completion, which in ((reference, "this row's reference as its completion"), ("", "an empty completion")):
        try:
            call_metric(function, completion, reference, row)
        except ValueError as error:
            return f"metric {name} {error}, for {which}; correct the function: it returns a finite number for every completion"
    return None


def as_finite_float(value: Any, bool_is: float | None = None) -> float:
    """A number of Python's, or a scalar of numpy or torch (an array without axes), as a float. `bool_is`: what True is worth;
    None refuses it. Raises ValueError for everything else, NaN and infinity too."""
    plain = value.item() if getattr(value, "shape", None) == () and not getattr(value, "mask", False) else value
    if isinstance(plain, bool) and bool_is is not None:
        return bool_is * plain
    number = math.nan
    if isinstance(plain, Real | Decimal) and not isinstance(plain, bool):
        try:
            number = float(plain)
        except (OverflowError, ValueError):  # an integer beyond floats, a signalling NaN of Decimal
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{short_repr(value)}, not a finite number")
    return number


def describe_error(error: BaseException) -> str:
    """The error with its type, on one line."""
    return f"{type(error).__name__}: {_one_line(str(error), 200)}"


def short_repr(value: Any) -> str:
    """The value on one short line."""
    return _one_line(repr(value), 80)


def _one_line(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def metric_source(name: str) -> str | None:
    """The source of a user's metric: scores are computed again when it changes. None for a metric of alfine's, and where the
    module's file is not there."""
    module, colon, _ = name.partition(":")
    place = Path.cwd().joinpath(*module.split("."))
    file = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    return file.read_text(encoding="utf-8", errors="replace") if colon and file is not None else None


def _check_place(name: str, module: str, here: Path) -> None:
    """A config may come from elsewhere, so it names no code but the project's own: `os:system` is none."""
    if not module:
        raise ConfigError(f"metric {name}: names no module; write module:function")
    place = here.joinpath(*module.split("."))
    found = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    if found is None or not found.resolve().is_relative_to(here.resolve()):
        raise ConfigError(
            f"metric {name}: there is no {module.replace('.', '/')}.py in the folder where alfine is started; "
            f"code of other places is not run"
        )


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"metric {name}: is asynchronous, so it returns no number; write def without async")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, some tell nothing; the first call will
        return
    try:
        signature.bind("completion", "reference", {})
    except TypeError:
        short = name.partition(":")[2]
        raise ConfigError(
            f"metric {name}: is called with a completion, a reference and a row, but takes {signature}; "
            f"write def {short}(completion, reference, row):"
        ) from None
