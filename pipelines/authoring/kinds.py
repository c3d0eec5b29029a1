"""The kind of a task: labels, several labels, translation, code, short or long text, or a conversation."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pipelines.authoring import names
from pipelines.authoring.columns import Column
from pipelines.authoring.outputs import looks_like_labels
from pipelines.authoring.roles import Roles

Kind = Literal["labels", "several labels", "choices", "translation", "code", "short text", "long text", "conversation"]
KINDS: dict[str, tuple[str, str]] = {
    "labels": ("one of a few labels", "exact_match"),
    "several labels": ("labels, separated by commas", "multilabel_f1"),
    "choices": ("the letter of one of the row's choices", "exact_match"),
    "translation": ("a translation", "chrf"),
    "code": ("code", "chrf"),
    "short text": ("a short text", "exact_match"),
    "long text": ("a text", "rouge"),
    "conversation": ("the turns of the assistant", "rouge"),
}
"""Kind → what a completion is, and its metric."""

MAX_LABELS = 20
"""Labels that a prompt lists."""
MAX_LABELS_CHARACTERS = 400
SHORT_WORDS = 3
"""Mean words of answers that are compared as a whole."""
_CODE = re.compile(
    r"^\s*(def |class |import |from \w+ import |return\b|#include|public |function |SELECT\b)"
    r"|^\s*(for|if) .*[:{]$|[;{}]\s*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Labels:
    """The labels of a column, the most frequent first, and the mark between several of one row."""

    values: tuple[str, ...]
    separator: str | None = None


def find_kind(roles: Roles) -> tuple[Kind, Labels | None, list[str]]:
    """The kind of the task, its labels if it has some, and notes."""
    output = roles.output
    if output is None or output.kind in ("list", "object"):
        return "conversation", None, []
    if roles.languages is not None:
        return "translation", None, []
    if roles.flags:
        return "several labels", Labels(tuple(column.name for column in roles.flags)), []
    if _is_index_of_choices(roles):
        return "choices", None, []
    if several := _several_labels(output):
        return "several labels", several, []
    if looks_like_labels(output):
        return "labels", Labels(tuple(label for label, _ in output.counts.most_common())), []
    notes = []
    if output.kind == "texts":
        notes.append(f"{output.name} is a list of texts: the first one is the answer")
    if names.rank(output.normalized, output.words, names.LABELS) is not None or output.kind == "number":
        notes.append(
            f"{output.name} has {output.num_distinct:,} different values in {len(output.present):,} rows, too many for "
            "labels: they are written and compared as text"
        )
    if roles.tests is not None and _looks_like_code(output):
        return "code", None, notes
    if "translation" in output.words:
        return "translation", None, notes
    if _looks_like_code(output):
        return "code", None, notes
    is_short = output.mean_words <= SHORT_WORDS and output.mean_characters <= 40
    return "short text" if is_short else "long text", None, notes


def _looks_like_code(column: Column) -> bool:
    texts = column.texts[:200]
    return column.kind == "text" and sum(len(_CODE.findall(text)) >= 2 for text in texts) > 0.6 * len(texts)


def choices_column(roles: Roles) -> Column | None:
    """The input with the choices of a question, as a list."""
    return next(
        (column for column in roles.inputs if column.normalized in names.CHOICES and column.kind == "texts"), None
    )


def _is_index_of_choices(roles: Roles) -> bool:
    """Whether the output is the index, from 0, of one of the row's choices."""
    choices, output = choices_column(roles), roles.output
    if choices is None or output is None:
        return False
    pairs = [
        (index, options) for index, options in zip(output.values, choices.values, strict=True) if index is not None
    ]
    return all(
        isinstance(index, int) and not isinstance(index, bool) and options and 0 <= index < min(len(options), 26)
        for index, options in pairs
    )


def _several_labels(output: Column) -> Labels | None:
    """The labels if the rows have several, as a list or between marks; None for texts."""
    if output.kind == "texts":
        return _if_few([list(value) for value in output.present], None)
    if output.kind != "text":
        return None
    for separator in (",", ";", "|"):
        parts = [[part.strip() for part in text.split(separator) if part.strip()] for text in output.texts]
        several = sum(len(labels) > 1 for labels in parts)
        if several >= max(2, 0.1 * len(parts)) and (labels := _if_few(parts, separator)):
            return labels
    return None


def _if_few(rows: list[list[str]], separator: str | None) -> Labels | None:
    """The labels of rows if few short ones occur again and again."""
    counts = Counter(label for labels in rows for label in labels)
    is_short = all(len(label.split()) <= 5 and len(label) <= 50 and "," not in label for label in counts)
    repeated = sum(count for count in counts.values() if count > 1)
    if not is_short or len(counts) < 2 or repeated < 0.9 * counts.total() or len(counts) > 0.2 * counts.total():
        return None
    return Labels(tuple(label for label, _ in counts.most_common()), separator)
