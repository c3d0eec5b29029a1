"""Custom metrics: a function `module:function(completion, reference, row)` of the user, imported from the working
directory."""

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
    """Imports the function that `module:function` names. Raises ConfigError if there is none, or if it cannot be called
    with a completion, a reference and a row."""
    module_name, _, function_name = name.partition(":")
    folder = str(Path.cwd())
    _check_location(name, module_name, Path(folder))
    sys.path.insert(0, folder)  # the user's modules are in the working directory, not in the installed packages
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"metric {name}: cannot import {module_name!r} ({describe_error(error)}); "
            f"modules are imported from the working directory"
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        close = difflib.get_close_matches(function_name, vars(module), n=1)
        advice = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"metric {name}: module {module_name!r} has no function {function_name!r}{advice}")
    _check_signature(name, function)
    return function


def call_metric(function: MetricFunction, completion: str, reference: str, row: Mapping[str, Any]) -> float:
    """Calls the metric and returns its value, True as 100 and False as 0. Raises ValueError, with the rest of the
    message, if it raises or returns anything but a finite number."""
    try:
        value = function(completion, reference, dict(row))
    except (Exception, SystemExit) as error:
        raise ValueError(f"raised {describe_error(error)}") from error
    try:
        return as_finite_float(value, true_value=100.0)
    except ValueError as error:
        raise ValueError(f"returned {error}") from None


def try_metric(name: str, reference: str, row: Mapping[str, Any]) -> str | None:
    """Calls the metric with the reference as completion and with an empty completion. Returns the error message, or
    None. Raises ConfigError as `load_metric` does."""
    function = load_metric(name)
    for completion, description in ((reference, "this row's reference as its completion"), ("", "an empty completion")):
        try:
            call_metric(function, completion, reference, row)
        except ValueError as error:
            return (
                f"metric {name} {error}, for {description}; correct the function: "
                f"it must return a finite number for every completion"
            )
    return None


def as_finite_float(value: Any, true_value: float | None = None) -> float:
    """A Python number, or a scalar of numpy or torch (an array without axes), as a float. `true_value` is the value of
    True; with None, booleans are an error. Raises ValueError for everything else, including NaN and infinity."""
    plain = value.item() if getattr(value, "shape", None) == () and not getattr(value, "mask", False) else value
    if isinstance(plain, bool) and true_value is not None:
        return true_value * plain
    result = math.nan
    if isinstance(plain, Real | Decimal) and not isinstance(plain, bool):
        try:
            result = float(plain)
        except (OverflowError, ValueError):  # an integer out of the range of floats, or a signalling NaN of Decimal
            result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{short_repr(value)}, not a finite number")
    return result


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
    """The source of a custom metric: scores are computed again when it changes. None for built-in metrics, and if the
    module's file does not exist."""
    module, colon, _ = name.partition(":")
    path = Path.cwd().joinpath(*module.split("."))
    file = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return file.read_text(encoding="utf-8", errors="replace") if colon and file is not None else None


def _check_location(name: str, module: str, folder: Path) -> None:
    """Raises ConfigError for a module outside of the working directory, such as `os:system`: a config may be from an
    untrusted source."""
    if not module:
        raise ConfigError(f"metric {name}: names no module; write module:function")
    path = folder.joinpath(*module.split("."))
    source = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    if source is None or not source.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"metric {name}: there is no {module.replace('.', '/')}.py in the working directory; "
            f"metrics are only imported from there"
        )


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"metric {name}: is asynchronous; write def without async")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # functions written in C may have no signature; the first call shows it
        return
    try:
        signature.bind("completion", "reference", {})
    except TypeError:
        short = name.partition(":")[2]
        raise ConfigError(
            f"metric {name}: is called with a completion, a reference and a row, but takes {signature}; "
            f"write def {short}(completion, reference, row):"
        ) from None
