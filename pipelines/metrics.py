"""A completion's score: exact match, ROUGE-L, chrF, unit tests, the loss, or a function of the user's."""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from pipelines.config import Job
from pipelines.errors import ConfigError, DataError, Problem
from pipelines.sandbox import run_tests
from pipelines.unit_tests import extract_code, row_tests

Line = Mapping[str, Any]
"""One line of `completions.jsonl`."""

_QUOTES = "\"'`´“”„‘’‚«»‹›"
_PUNCTUATION = ".,;:!?。、，！？"


@dataclass(frozen=True)
class Score:
    """`value` in the metric's unit; None: it cannot be scored, and `detail` says why."""

    value: float | None
    detail: str = ""


@dataclass(frozen=True)
class Metric:
    """How a task is scored. A `binary` one gives 0 or 100 and nothing between."""

    name: str
    title: str
    unit: str
    binary: bool
    higher_is_better: bool
    score: Callable[[Line], Score]
    """Raises DataError for a line that has not what the metric needs."""


def resolve(name: str) -> Metric:
    """The metric of that name, or of the user's `module:function`. Raises ConfigError if there is none."""
    if ":" in name:
        return _own(name)
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"write one of {', '.join(METRICS)}, or module:function"
        raise ConfigError(f"unknown metric {name!r}; {advice}")
    return METRICS[name]


def unresolved(job: Job) -> list[Problem]:
    """A finding for each task whose metric cannot be had: a module that is not there, a function that it lacks."""
    problems = []
    for name, task in job.pipeline.tasks.items():
        try:
            resolve(task.metric)
        except ConfigError as error:
            problems.append(job.problem(f"task {name}: {error}", "pipeline", "tasks", name, "metric"))
    return problems


def normalise_label(text: str) -> str:
    """The form in which labels are compared: case, white space, quotes around it, punctuation behind it and
    Unicode's compatibility forms do not count."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.lstrip(_QUOTES + " ").rstrip(_QUOTES + _PUNCTUATION + " ") or folded


def loose_label(completion: str, reference: str, labels: Iterable[str]) -> bool:
    """Whether the completion names the right one of the task's labels, as whole words, and no other: a model
    that knows the answer, whether or not it knows the format. A longer label does not name the shorter one in
    it ("very positive")."""
    right = normalise_label(reference)
    known = sorted({right, *map(normalise_label, labels)} - {""}, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)"
    return bool(known) and set(re.findall(pattern, normalise_label(completion))) == {right}


def _label(line: Line) -> Score:
    return Score(100.0 * (normalise_label(line["completion"]) == normalise_label(line["reference"])))


def _rouge(line: Line) -> Score:
    return Score(100.0 * _rouge_scorer().score(line["reference"], line["completion"])["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _chrf(line: Line) -> Score:
    return Score(float(_chrf_scorer().sentence_score(line["completion"], [line["reference"]]).score))


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()  # chrF2: six characters, no words


def _unit_tests(line: Line) -> Score:
    try:
        tests = row_tests(line["fields"])
    except DataError as error:
        raise DataError(f"{_place(line)}: {error}") from None
    result = run_tests(extract_code(line["completion"]), tests)
    if result.unsupported:
        return Score(None, f"not supported by the sandbox: {result.message}")
    if result.passed == result.total:
        return Score(100.0)
    return Score(0.0, f"{result.passed} of {result.total} tests pass; {result.message}")


def _perplexity(line: Line) -> Score:
    return Score(_number(line["reference_loss"], f"{_place(line)}: reference_loss"))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("label", "exact match", "%", binary=True, higher_is_better=True, score=_label),
        Metric("rouge", "ROUGE-L", "points", binary=False, higher_is_better=True, score=_rouge),
        Metric("chrf", "chrF", "points", binary=False, higher_is_better=True, score=_chrf),
        Metric("unit_tests", "tests passed", "%", binary=True, higher_is_better=True, score=_unit_tests),
        Metric("perplexity", "loss", "nats/token", binary=False, higher_is_better=False, score=_perplexity),
    )
}


def _own(name: str) -> Metric:
    """The user's `function(completion, reference, row)`, `row` being the row's columns. It returns a number,
    the more the better, on a scale of 0 to 100 if it can; True counts as 100."""
    function = _import(name)

    def score(line: Line) -> Score:
        place = f"{_place(line)}: metric {name}"
        try:
            value = function(line["completion"], line["reference"], dict(line["fields"]))
        except Exception as error:
            raise DataError(f"{place} raised {type(error).__name__}: {error}") from error
        return Score(100.0 * value if isinstance(value, bool) else _number(value, f"{place} returned"))

    title = name.partition(":")[2]
    return Metric(name, title, "points", binary=False, higher_is_better=True, score=score)


def _import(name: str) -> Callable[[str, str, dict[str, Any]], Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    _check_place(name, module_name, Path(here))
    sys.path.insert(0, here)  # the user's modules stand beside their data, not in the installed packages
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"metric {name}: cannot import {module_name!r} ({type(error).__name__}: {error}); "
            f"modules are looked for in the folder where alfine is started"
        ) from error
    finally:
        sys.path.remove(here)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        near = difflib.get_close_matches(function_name, vars(module), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"metric {name}: module {module_name!r} has no function {function_name!r}{advice}")
    return function


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


def _number(value: Any, what: str) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DataError(f"{what} {_shown(value)}, not a finite number")


def _place(line: Line) -> str:
    return f"task {line['task']!r}, row {line['row']}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
