"""Exact match of labels, after normalization or as written."""

from __future__ import annotations

from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register
from pipelines.scoring.unicode_text import NORMALIZATION_NOTE, normalize_label, strip_label

LABEL_NOTE = f"Case, white space, quotes around a label, punctuation at its end, {NORMALIZATION_NOTE} do not count."


def _normalized(record: CompletionFields) -> Score:
    return Score(100.0 * (normalize_label(record["completion"]) == normalize_label(record["reference"])))


def _unnormalized(record: CompletionFields) -> Score:
    return Score(100.0 * (strip_label(record["completion"]) == strip_label(record["reference"])))


register(
    Metric(
        name="exact_match",
        title="exact match",
        unit=Unit.PERCENT,
        score=_normalized,
        binary=True,
        note=f"{LABEL_NOTE} `normalize: false` counts a label as it is written.",
        labels=lambda text: [text],
        single_label=True,
        normalize_label=normalize_label,
        unnormalized=Metric(
            name="exact_match",
            title="exact match, as written",
            unit=Unit.PERCENT,
            score=_unnormalized,
            binary=True,
            note="A label counts as it is written; only white space around it and Unicode's canonical forms (NFC) "
            "do not.",
            labels=lambda text: [text],
            single_label=True,
            normalize_label=strip_label,
        ),
    )
)
