"""Which column of a file is the answer, by its name and by what it holds."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.authoring import names
from pipelines.authoring.columns import Column
from pipelines.authoring.sample import Sample
from pipelines.errors import DataError, Problem

MAX_LISTED = 8
"""Columns that a message names."""


def find_output(
    sample: Sample, candidates: Sequence[Column], columns: Sequence[Column]
) -> tuple[Column, tuple[Column, ...]]:
    """The column of the answer, and those that are as likely."""
    if "" in sample.columns and len({column.source for column in columns}) < 2:
        raise DataError(Problem("one of its columns has no name; give it one", sample.data))
    if len({column.source for column in columns}) < 2:
        message = "has one column, so there is no answer to learn; add a column with the answer of each row"
        raise DataError(Problem(f"{message} (text without a prompt is not trained)", sample.data))
    for group in names.OUTPUTS:
        ranked = _ranked(candidates, group)
        if ranked:
            equal = [column for column in ranked[1:] if column.source != ranked[0].source]
            if group is names.ANSWERS:  # a part of a name says less: `answer_start` is no answer
                equal = [column for column in equal if column.normalized in group]
            return ranked[0], tuple(equal)
    if constant := [column for column in columns if column.is_constant and has_output_name(column)]:
        value = constant[0].texts[0]
        message = (
            f"column {constant[0].name} has the same value in all rows ({value[:40]!r}): there is nothing to learn"
        )
        raise DataError(Problem(f"{message}; add rows with other values", sample.data))
    labels = [column for column in candidates if looks_like_labels(column)]
    if labels:  # the last one: tables have their output at the end
        return labels[-1], tuple(labels[:-1])
    texts = [column for column in candidates if column.kind in ("text", "texts")]
    if len(texts) >= 2:
        return texts[-1], tuple(texts[1:-1])
    if len(candidates) > 1:
        return candidates[-1], tuple(candidates[:-1]) if len(candidates) > 2 else ()
    others = [column for column in columns if not column.keys and column not in candidates]
    reasons = listed([f"{column.name}: {why_unused(column)}" for column in others])
    message = f"no column can be the answer ({reasons})"
    raise DataError(Problem(f"{message}; add a column with the answer of each row", sample.data))


def why_unused(column: Column) -> str:
    """Why a column is neither the answer nor the prompt, in a word."""
    if column.kind == "empty":
        return "empty"
    if column.is_constant:
        return "one value"
    return {"list": "a list", "object": "an object", "mixed": "values of several types"}.get(
        column.kind, "an id or a date"
    )


def _ranked(candidates: Sequence[Column], group: Sequence[str]) -> list[Column]:
    """The columns with a name of the group, the most likely output first."""
    places = [(names.rank(column.normalized, column.words, group), column) for column in candidates]
    ranked = sorted(((place, column) for place, column in places if place is not None), key=lambda pair: pair[0])
    if group is names.ANSWERS:
        return [column for _, column in ranked]
    # Of labels the kind of name matters more than whether it is the whole name: `gold_label` comes before `genre`.
    size = len(group)
    ranked.sort(key=lambda pair: (not looks_like_labels(pair[1]), pair[1].num_missing > 0, pair[0] % size))
    return [column for _, column in ranked]


def has_output_name(column: Column) -> bool:
    return any(names.rank(column.normalized, column.words, group) is not None for group in names.OUTPUTS)


def looks_like_labels(column: Column) -> bool:
    """Whether few short values occur again and again."""
    count, distinct = len(column.present), column.num_distinct
    is_short = column.mean_words <= 5 and max(map(len, column.texts), default=0) <= 80
    few = max(2, 0.2 * count) if count > 50 else max(2, 0.4 * count)
    is_real = column.kind == "number" and any(isinstance(v, float) and not v.is_integer() for v in column.present)
    return is_short and 2 <= distinct <= few and column.kind != "texts" and not (is_real and distinct > 20)


def listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MAX_LISTED:,} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
