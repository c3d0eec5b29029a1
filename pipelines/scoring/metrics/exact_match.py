"""Exact match of labels, after normalization or as written."""

from __future__ import annotations

from pipelines.scoring.metric import CompletionLine, Metric, Score, Unit, register
from pipelines.scoring.unicode_text import NORMALIZATION_NOTE, normalise_label, written_label

LABEL_NOTE = f"Case, white space, quotes around a label, punctuation at its end, {NORMALIZATION_NOTE} do not count."


def _normalized(line: CompletionLine) -> Score:
    return Score(100.0 * (normalise_label(line["completion"]) == normalise_label(line["reference"])))


def _as_written(line: CompletionLine) -> Score:
    return Score(100.0 * (written_label(line["completion"]) == written_label(line["reference"])))


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
        label_form=normalise_label,
        as_written=Metric(
            name="exact_match",
            title="exact match, as written",
            unit=Unit.PERCENT,
            score=_as_written,
            binary=True,
            note="A label counts as it is written; only white space around it and Unicode's canonical forms (NFC) "
            "do not.",
            labels=lambda text: [text],
            single_label=True,
            label_form=written_label,
        ),
    )
)
