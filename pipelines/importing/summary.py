"""What `alfine import` says of a config: which keys were mapped, changed and dropped, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap

from pipelines.config.messages import KeyPath, dotted, shorten
from pipelines.importing.draft import NO_VALUE, OFF, UNKNOWN, JobDraft

WIDTH = 110


def summary_lines(draft: JobDraft) -> Iterator[str]:
    """The summary, one group after the other. Every key of the source is in one of them."""
    yield f"{draft.file}: {draft.tool} config"
    yield from _mapped(draft)
    if draft.changed:
        yield "changed:"
        for path, message in draft.changed.items():
            yield from _wrapped(f"{_named(path)}{_line(draft, path)}: {message}")
    if draft.dropped:
        yield "dropped:"
        for reason, paths in _grouped(draft.dropped):
            yield from _wrapped(f"{', '.join(_named(path) for path in paths)}: {reason}")
    if draft.notes:
        yield "note:"
        for note in draft.notes:
            yield from _wrapped(note)


def _mapped(draft: JobDraft) -> Iterator[str]:
    pairs = [
        _named(path) if dotted(path) == key else f"{_named(path)} → {key}"
        for path, key in draft.mapped.items()
        if path not in draft.changed
    ]
    if pairs:
        yield f"mapped: {len(pairs)} keys"
        yield from _wrapped(", ".join(pairs))


def _grouped(dropped: Mapping[KeyPath, str]) -> Iterable[tuple[str, list[KeyPath]]]:
    """Reasons with their keys; unknown keys first, keys without a value last."""
    groups: dict[str, list[KeyPath]] = {}
    for path, reason in dropped.items():
        groups.setdefault(reason, []).append(path)
    order = {UNKNOWN: 0, OFF: 2, NO_VALUE: 3}
    return sorted(groups.items(), key=lambda group: order.get(group[0], 1))


def _named(path: KeyPath) -> str:
    return shorten(dotted(path), 80)


def _line(draft: JobDraft, path: KeyPath) -> str:
    location = draft.source.location(*path)
    return f" (line {location.line})" if location and location.line else ""


def _wrapped(text: str) -> Iterator[str]:
    """The text in lines of at most WIDTH columns; the first has a dash."""
    yield from wrap(
        text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
