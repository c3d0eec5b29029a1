"""The class of metrics, and the registry that resolves the value of `metric:`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipelines.errors import ConfigError, DataError
from pipelines.registry import Registry
from pipelines.scoring.custom_metrics import call_metric, load_metric

CompletionFields = Mapping[str, Any]
"""The fields of a line of `completions.jsonl`."""


class Unit(StrEnum):
    """The unit of a score, as reports write it."""

    PERCENT = "%"
    """The percentage of correct completions, from 0 to 100."""
    POINTS = "points"
    """A score; built-in metrics are from 0 to 100."""
    NATS_PER_TOKEN = "nats/token"
    """A mean negative log-likelihood or divergence per token."""

    @property
    def of_change(self) -> str:
        """The unit of a difference of two scores: percentages differ by points."""
        return Unit.POINTS.value if self is Unit.PERCENT else self.value

    @property
    def decimals(self) -> int:
        """The decimal places that reports show."""
        return 3 if self is Unit.NATS_PER_TOKEN else 1


@dataclass(frozen=True)
class Score:
    """The score of one completion in the metric's unit. `value` is None if it cannot be scored; `detail` says why."""

    value: float | None
    detail: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric: scores one completion of a task."""

    name: str
    """The name in `metric:`."""
    title: str
    """The name that reports show."""
    unit: Unit
    score: Callable[[CompletionFields], Score]
    """Scores one line of `completions.jsonl`. Raises DataError for a line that lacks what the metric needs."""
    binary: bool = False
    """Whether every score is 0 or 100."""
    higher_is_better: bool = True
    note: str = ""
    """Sentences for the report on how completions and references are compared."""
    labels: Callable[[str], Sequence[str]] | None = None
    """Returns the labels in a text; None unless the completions are labels."""
    single_label: bool = False
    """Whether a completion is exactly one label; the most frequent label is then a baseline."""
    normalize_label: Callable[[str], str] = str
    """Returns the form of a label in which it is compared."""
    scores_completions: bool = True
    """Whether the completion is scored; False for the loss of the reference, which needs no generation."""
    unnormalized: Metric | None = None
    """The metric under `normalize: false`, if it has one."""
    check_row: Callable[[Mapping[str, Any]], object] | None = None
    """Raises DataError for the columns of a row that cannot be scored; None if every row can be."""


METRICS: Registry[Metric] = Registry("pipelines.scoring.metrics")
_UNNORMALIZED_SUFFIX = " as written"


def register(metric: Metric) -> Metric:
    """Adds a metric to METRICS under its name, and returns it."""
    return METRICS.register(metric.name, metric)


def metric_key(name: str, normalize: bool | None) -> str:
    """The key for `metric_from_key` of a task's `metric:` with its `normalize:`."""
    return (
        name + _UNNORMALIZED_SUFFIX if normalize is False and name in METRICS and METRICS[name].unnormalized else name
    )


def metric_from_key(key: str) -> Metric:
    """The metric of a key: a built-in name, a custom `module:function`, or a result of `metric_key`.

    Raises ConfigError if there is none.
    """
    if ":" in key:
        return _custom_metric(key)
    name = key.removesuffix(_UNNORMALIZED_SUFFIX)
    if name not in METRICS:
        raise ConfigError(f"unknown metric {key!r}; {metric_hint(key)}")
    if name == key:
        return METRICS[name]
    unnormalized = METRICS[name].unnormalized
    if unnormalized is None:
        raise ConfigError(f"unknown metric {key!r}; {metric_hint(name)}")
    return unnormalized


def check_row(metric: str, fields: Mapping[str, Any]) -> None:
    """Raises DataError for the columns of a row that the built-in `metric` cannot score. Imports no custom metric."""
    if metric in METRICS and (check := METRICS[metric].check_row) is not None:
        check(fields)


def metric_hint(name: str) -> str:
    """The advice for an unknown metric `name`."""
    if name in _RENAMED:
        return f"it was renamed: write {_RENAMED[name]}"
    close = difflib.get_close_matches(name, [*METRICS, *_RENAMED], n=1)
    if close:
        return f"did you mean {_RENAMED.get(close[0], close[0])}?"
    return f"write one of {', '.join(METRICS)}, or module:function"


def reads_reference_loss(metric: str) -> bool:
    """Whether a metric reads `reference_nll` of a completion, so that the loss of the reference must be computed."""
    return metric == "nll"


_RENAMED = {"label": "exact_match", "perplexity": "nll"}


def _custom_metric(name: str) -> Metric:
    """The metric of a custom `function(completion, reference, row)`, where `row` has the columns of the row.

    The function returns a number, where higher is better, preferably from 0 to 100; True counts as 100.
    """
    function = load_metric(name)

    def score(record: CompletionFields) -> Score:
        try:
            return Score(call_metric(function, record["completion"], record["reference"], record["fields"]))
        except ValueError as error:
            raise DataError(f"{row_location(record)}: metric {name} {error}") from error

    return Metric(name, title=name.partition(":")[2], unit=Unit.POINTS, score=score)


def row_location(record: CompletionFields) -> str:
    """The task and the row of a completion, for messages."""
    return f"task {record['task']!r}, row {record['row']}"
