"""F1 of the set of labels of each row: scikit-learn's `f1_score` of a row with `average="samples"`."""

from __future__ import annotations

from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register
from pipelines.scoring.metrics.exact_match import LABEL_NOTE
from pipelines.scoring.unicode_text import normalize_label, split_labels


def _score(record: CompletionFields) -> Score:
    """The F1 of the two sets, 2 |A ∩ B| / (|A| + |B|)."""
    predicted, expected = (
        {normalize_label(label) for label in split_labels(record[column])} for column in ("completion", "reference")
    )
    if predicted == expected:
        return Score(100.0)
    return Score(200.0 * len(predicted & expected) / (len(predicted) + len(expected)))


register(
    Metric(
        name="multilabel_f1",
        title="F1 of label sets",
        unit=Unit.POINTS,
        score=_score,
        note=f"F1 of the set of labels of each row, split at commas; their order does not count. {LABEL_NOTE}",
        labels=split_labels,
        normalize_label=normalize_label,
    )
)
