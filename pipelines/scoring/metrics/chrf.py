"""chrF2 of sacrebleu: character n-grams up to 6, no words. (Popović 2015, https://aclanthology.org/W15-3049.)"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

from pipelines.registry import lazy_import
from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register

# 0.4 s that `check` does not need.
sacrebleu_metrics = lazy_import("sacrebleu.metrics")


@cache
def _scorer() -> Any:
    return sacrebleu_metrics.CHRF()


def _score(record: CompletionFields) -> Score:
    # Khmer and others write a zero width space between words; chrF ignores white space but not this character.
    completion, reference = (
        unicodedata.normalize("NFC", record[column].replace("\u200b", " ")) for column in ("completion", "reference")
    )
    if completion == reference:
        return Score(100.0)
    return Score(float(_scorer().sentence_score(completion, [reference]).score))


register(
    Metric(
        name="chrf",
        title="chrF",
        unit=Unit.POINTS,
        score=_score,
        note="chrF2 (sacrebleu): F score of sequences of one to six characters, of any script, without white space, in "
        "Unicode's canonical form (NFC).",
    )
)
