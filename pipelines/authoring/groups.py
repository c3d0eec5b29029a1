"""Rows that belong together: those of one context, user, document or conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.authoring import names
from pipelines.authoring.columns import Column

if TYPE_CHECKING:
    from pipelines.authoring.roles import Roles

MIN_GROUPS, MAX_GROUPS_SHARE, MAX_GROUP_SHARE = 10, 0.7, 0.2
"""Groups of rows: how many there are, at most as a share of the rows, and the share of the largest one."""
MAX_ID_WORDS = 4
"""Mean words of the ids of groups; longer values are texts."""


def find_group(columns: Sequence[Column]) -> Column | None:
    """The column with an id that several rows have in common: a user, a document, a conversation."""
    found = [column for column in columns if column.is_scalar and not column.keys and _groups_rows(column)]
    return min(found, key=lambda column: not has_group_name(column), default=None)


def has_group_name(column: Column) -> bool:
    """Whether a column's name says that its values are those of rows that belong together."""
    return bool(set(column.words) & names.GROUPS)


def _groups_rows(column: Column) -> bool:
    """Whether a column has ids, the rows of one are few, and most have several rows."""
    is_id = has_group_name(column) or column.words[-1:] in (("id",), ("uid",))
    if not is_id or column.mean_words > MAX_ID_WORDS:
        return False
    count, distinct, largest = len(column.present), column.num_distinct, max(column.counts.values())
    return MIN_GROUPS <= distinct <= MAX_GROUPS_SHARE * count and largest <= MAX_GROUP_SHARE * count


def cluster_column(roles: Roles) -> Column | None:
    """The context that several rows share, else the column with the id of a group of rows."""
    context = next(
        (column for column in roles.inputs if column.normalized in names.CONTEXTS and _is_shared(column)), None
    )
    others = (roles.output, roles.conversation, roles.tests, *(column for _, column in roles.options), *roles.flags)
    taken = {column.source for column in others if column is not None}
    group = roles.group
    if context is not None or group is None or group.source in taken:
        return context
    # The number of a label is not the id of a group: a test would have labels that were never trained.
    labels: dict[str, set[str]] = {}
    for value, label in zip(group.values, roles.output.values if roles.output else [], strict=False):
        labels.setdefault(str(value), set()).add(str(label))
    return None if labels and all(len(found) == 1 for found in labels.values()) else group


def _is_shared(column: Column) -> bool:
    """Whether a text is that of several rows."""
    is_text = not column.keys and column.kind == "text" and not column.num_missing
    return is_text and 1 < column.num_distinct < 0.8 * len(column.values)
