"""ROUGE-L of the package rouge-score, with words of every script. (Lin 2004, https://aclanthology.org/W04-1013.)"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from pipelines.registry import lazy_import
from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register
from pipelines.scoring.unicode_text import NORMALIZATION_NOTE, tokens

# 0.5 s that `check` does not need.
porter = lazy_import("nltk.stem.porter")
rouge_scorer = lazy_import("rouge_score.rouge_scorer")


class _Tokenizer:
    """The words of any script, those in the letters a to z stemmed as rouge-score does.

    rouge-score's own tokenizer keeps only the letters a to z and digits.
    """

    def __init__(self) -> None:
        self._stem = lru_cache(maxsize=65_536)(porter.PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in tokens(text)]


@cache
def _scorer() -> Any:
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def _score(record: CompletionFields) -> Score:
    if record["completion"] == record["reference"]:  # a text of invisible characters only has no tokens
        return Score(100.0)
    return Score(100.0 * _scorer().score(record["reference"], record["completion"])["rougeL"].fmeasure)


register(
    Metric(
        name="rouge",
        title="ROUGE-L",
        unit=Unit.POINTS,
        score=_score,
        note="F score of the longest common subsequence of words (rouge-score), those in the letters a to z stemmed as "
        "English; of scripts without spaces between words, such as Chinese, Japanese, Thai or Khmer, of characters. "
        f"Case, punctuation, {NORMALIZATION_NOTE} do not count.",
    )
)
