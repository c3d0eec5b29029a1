"""What a user should know of the columns and rows that a job was written from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pipelines.authoring.kinds import MAX_LABELS, Labels
from pipelines.authoring.outputs import MAX_LISTED, listed
from pipelines.authoring.roles import Roles
from pipelines.authoring.sample import Sample
from pipelines.config.messages import shorten
from pipelines.data.templates import SPLIT_COLUMN

MIN_ROWS = 50
"""Rows below which a result has a wide interval."""


def role_notes(roles: Roles, labels: Labels | None, sample: Sample, used: Collection[str]) -> list[str]:
    """Notes on what the columns were taken for.

    used: the columns that the task uses, as it is written.
    """
    found = []
    if ties := [column.name for column in roles.ties if column.source not in used]:
        found.append(f"{_names(ties)} could be the answer as well: edit prompt and completion, or use --interactive")
    if roles.languages is not None:
        found.append("the direction is that of the columns; swap the two in the templates for the other one")
    if roles.rejected is not None:
        found.append(f"{roles.rejected.name} is not trained: alfine trains on answers, not on preferences")
    if labels is not None and len(labels.values) > MAX_LABELS:
        found.append(f"{len(labels.values):,} labels are too many for the prompt, which does not list them")
    if roles.is_guess and roles.output is not None:
        answer = f"{roles.output.name} is a guess" if not roles.flags else "the columns of 0 and 1 are a guess"
        found.append(f"no column has a usual name of an answer (label, output, …): {answer}")
    if rest := [name for name in sample.columns if name not in {*used, SPLIT_COLUMN, ""}]:
        found.append(f"not used: {listed(rest)}")
    return found


def row_notes(sample: Sample) -> list[str]:
    """Notes on copies of rows, small files and missing headers."""
    counts: dict[str, int] = {}
    for row in sample.rows:
        key = repr(sorted(row.fields.items(), key=lambda item: item[0]))
        counts[key] = counts.get(key, 0) + 1
    copies = sum(count - 1 for count in counts.values())
    notes = [f"copies of other rows: {copies:,}; they may be in training and test"] if copies else []
    if values := [name for name in sample.columns if _looks_like_a_value(name, sample)]:
        notes.append(
            f"names of columns look like values ({shorten(', '.join(values), 60)}): is the first row a header?"
        )
    if len(sample.rows) < MIN_ROWS and sample.is_complete:
        notes.append(f"only {len(sample.rows):,} rows: the test is too small to show a difference")
    return notes


def _looks_like_a_value(name: str, sample: Sample) -> bool:
    """Whether a column's name is a number, a sentence, or one of its own values, as in a table without a header."""
    is_sentence = len(name.split()) > 8
    return is_sentence or re.fullmatch(r"[-+.\d]+", name) is not None or name in sample.values(name)


def _names(texts: Sequence[str]) -> str:
    """A sentence's list of names; of many, the first ones and the number of the others."""
    if len(texts) > MAX_LISTED:
        return listed(texts)
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
