"""Checks of a task's labels: their spelling, and how often each occurs in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipelines.data.examples import Example
from pipelines.data.splits import SPLITS
from pipelines.scoring.metric import Metric

MAX_LABELS_LISTED = 5
"""Labels that a message names; the others are counted."""
DOMINANT_FRACTION = 0.95
"""Fraction of a split's rows from which one label counts as dominant."""


class LabelChecks:
    """Counts the labels of one task: one spelling of each normalized label, and its number of rows per split."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.spellings: dict[str, str] = {}
        self.second_spellings: dict[str, str] = {}
        self.rows: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}

    def observe(self, example: Example) -> None:
        assert self.metric.labels is not None
        for label in dict.fromkeys(self.metric.labels(example.reference)):
            normalized = self.metric.normalize_label(label)
            if self.spellings.setdefault(normalized, label) != label:
                self.second_spellings.setdefault(normalized, label)
            self.rows[example.split][normalized] += 1

    def single_label(self) -> Iterator[str]:
        """An error for each split whose rows all have the same label."""
        for split in ("train", "test"):
            if len(self.rows[split]) == 1 and self.metric.single_label:
                label = self.spellings[next(iter(self.rows[split]))]
                advice = "there is nothing to learn or to compare: shuffle the rows or set their `split`"
                yield f"every {split} row has the label {label!r}; {advice}"

    def warnings(self, with_advice: bool) -> Iterator[str]:
        """The warnings about the labels, with or without advice."""
        yield from self._merged_spellings(with_advice)
        yield from self._unseen_in_training(with_advice)
        yield from self._dominant_label(with_advice)

    def _merged_spellings(self, with_advice: bool) -> Iterator[str]:
        pairs = [f"{self.spellings[label]!r} and {second!r}" for label, second in self.second_spellings.items()]
        if pairs:
            message = f"labels that are equal after normalization count as one label: {_listed(pairs)}"
            advice = "; use one spelling per label"
            if self.metric.single_label:
                advice += ", or write normalize: false if they are different labels"
            yield message + advice * with_advice

    def _unseen_in_training(self, with_advice: bool) -> Iterator[str]:
        unseen = {label: rows for label, rows in self.rows["test"].items() if label not in self.rows["train"]}
        if unseen:
            listed = _listed([f"{self.spellings[label]!r} ({_row_count(rows)})" for label, rows in unseen.items()])
            subject = "a label" if len(unseen) == 1 else f"{len(unseen):,} labels"
            verb = "has" if len(unseen) == 1 else "have"
            message = f"{subject} of the test rows {verb} no training row: {listed}"
            advice = "; the model cannot learn them: move rows with them to train, or drop them"
            yield message + advice * with_advice

    def _dominant_label(self, with_advice: bool) -> Iterator[str]:
        for split in ("train", "test"):
            total = self.rows[split].total()
            for label, rows in self.rows[split].most_common(1):
                if DOMINANT_FRACTION * total <= rows < total and self.metric.single_label:
                    message = f"{rows:,} of {total:,} {split} rows have the label {self.spellings[label]!r}"
                    advice = "; a model that always predicts it scores nearly as well: add rows with the other labels"
                    yield message + advice * with_advice


def _listed(parts: Sequence[str]) -> str:
    rest = len(parts) - MAX_LABELS_LISTED
    return ", ".join(parts[:MAX_LABELS_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def _row_count(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
