"""A completion's score: exact match, ROUGE-L, chrF, unit tests, the loss, or a function of the user's."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pipelines.errors import ConfigError, DataError
from pipelines.scoring.custom_metrics import finite, own_function, own_value
from pipelines.scoring.sandbox import run_tests
from pipelines.scoring.unicode_text import normalise_label, split_labels, tokens, written_label
from pipelines.scoring.unit_tests import extract_code, row_tests

Line = Mapping[str, Any]
"""One line of `completions.jsonl`."""

LABEL_AS_WRITTEN = "label as written"
"""The name by which `resolve` knows the metric `label` under `normalize: false`."""


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
    note: str = ""
    """How answers are compared, in sentences for the report."""
    labels: Callable[[str], Sequence[str]] | None = None
    """Where answers are labels: those that a text gives."""
    form: Callable[[str], str] = normalise_label
    """Labels of one form count as one."""


def resolve(name: str) -> Metric:
    """The metric of that name, or of the user's `module:function`. Raises ConfigError if there is none."""
    if ":" in name:
        return _own(name)
    if name == LABEL_AS_WRITTEN:
        return _AS_WRITTEN
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"write one of {', '.join(METRICS)}, or module:function"
        raise ConfigError(f"unknown metric {name!r}; {advice}")
    return METRICS[name]


def scored_by(metric: str, normalize: bool | None) -> str:
    """The name for `resolve` of a task's metric with its key `normalize`."""
    return LABEL_AS_WRITTEN if metric == "label" and normalize is False else metric


def _label(line: Line) -> Score:
    return Score(100.0 * (normalise_label(line["completion"]) == normalise_label(line["reference"])))


def _label_as_written(line: Line) -> Score:
    return Score(100.0 * (written_label(line["completion"]) == written_label(line["reference"])))


def _multilabel_f1(line: Line) -> Score:
    """The F1 of the two sets, 2 |A ∩ B| / (|A| + |B|): scikit-learn's f1_score of a row with average="samples"."""
    given, right = ({normalise_label(one) for one in split_labels(line[side])} for side in ("completion", "reference"))
    return Score(100.0 if given == right else 200.0 * len(given & right) / (len(given) + len(right)))


def _rouge(line: Line) -> Score:
    if line["completion"] == line["reference"]:  # invisible characters alone have no tokens
        return Score(100.0)
    return Score(100.0 * _rouge_scorer().score(line["reference"], line["completion"])["rougeL"].fmeasure)


class _Tokenizer:
    """For rouge-score, which by itself keeps only the letters a to z and digits. Words of these are stemmed as it does."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=65_536)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return [self.stem(word) if len(word) > 3 and word.isascii() else word for word in tokens(text)]


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def _chrf(line: Line) -> Score:
    # A zero width space stands between the words of Khmer and others; chrF leaves out what is between words.
    given, right = (
        unicodedata.normalize("NFC", line[side].replace("\u200b", " ")) for side in ("completion", "reference")
    )
    return Score(100.0 if given == right else float(_chrf_scorer().sentence_score(given, [right]).score))


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
    try:
        return Score(finite(line["reference_nll"]))
    except ValueError as error:
        raise DataError(f"{_place(line)}: reference_nll {error}") from None


_FOLDED = (
    "Unicode's compatibility forms (NFKC, caseless), invisible characters and the vowel signs of Arabic and Hebrew"
)
_LABEL_NOTE = f"Case, white space, quotes around a label, punctuation at its end, {_FOLDED} do not count."

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "label",
            "exact match",
            "%",
            binary=True,
            higher_is_better=True,
            score=_label,
            note=f"{_LABEL_NOTE} `normalize: false` counts a label as it is written.",
            labels=lambda text: [text],
            form=normalise_label,
        ),
        Metric(
            "multilabel_f1",
            "F1 of label sets",
            "points",
            binary=False,
            higher_is_better=True,
            score=_multilabel_f1,
            note=f"F1 of the set of labels of each row, split at commas; their order does not count. {_LABEL_NOTE}",
            labels=split_labels,
            form=normalise_label,
        ),
        Metric(
            "rouge",
            "ROUGE-L",
            "points",
            binary=False,
            higher_is_better=True,
            score=_rouge,
            note="F score of the longest common subsequence of words (rouge-score), those in the letters a to z stemmed as "
            "English; of scripts without spaces between words, such as Chinese, Japanese, Thai or Khmer, of characters. Case, "
            f"punctuation, {_FOLDED} do not count.",
        ),
        Metric(
            "chrf",
            "chrF",
            "points",
            binary=False,
            higher_is_better=True,
            score=_chrf,
            note="chrF2 (sacrebleu): F score of sequences of one to six characters, of any script, without white space, in "
            "Unicode's canonical form (NFC).",
        ),
        Metric("unit_tests", "tests passed", "%", binary=True, higher_is_better=True, score=_unit_tests),
        Metric("perplexity", "loss", "nats/token", binary=False, higher_is_better=False, score=_perplexity),
    )
}
_AS_WRITTEN = Metric(
    "label",
    "exact match, as written",
    "%",
    binary=True,
    higher_is_better=True,
    score=_label_as_written,
    note="A label counts as it is written; only white space around it and Unicode's canonical forms (NFC) do not.",
    labels=lambda text: [text],
    form=written_label,
)


def _own(name: str) -> Metric:
    """The user's `function(completion, reference, row)`, `row` being the row's columns. It returns a number,
    the more the better, on a scale of 0 to 100 if it can; True counts as 100."""
    function = own_function(name)

    def score(line: Line) -> Score:
        try:
            return Score(own_value(function, line["completion"], line["reference"], line["fields"]))
        except ValueError as error:
            raise DataError(f"{_place(line)}: metric {name} {error}") from error

    title = name.partition(":")[2]
    return Metric(name, title, "points", binary=False, higher_is_better=True, score=score)


def _place(line: Line) -> str:
    return f"task {line['task']!r}, row {line['row']}"
