"""Which columns of a file are the prompt and which the answer, by their names and by what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.authoring import names
from pipelines.authoring.columns import Column, is_conversation, is_prompt_of_messages, read_columns
from pipelines.authoring.groups import find_group
from pipelines.authoring.outputs import find_output, has_output_name, listed, looks_like_labels, why_unused
from pipelines.authoring.sample import Sample
from pipelines.data.tool_calls import parse_tools
from pipelines.errors import DataError, Problem

MAX_INPUTS = 8
"""Columns that become a prompt if none of them is a text."""
MIN_PRESENT = 0.5
"""Share of the rows in which an output has a value; an empty list is one."""
_URL = re.compile(r"(https?|ftp)://\S+|www\.\S+")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?|\d{4}-\d{2}-\d{2}T.*")
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}|[0-9a-f]{16,64}", re.IGNORECASE)


@dataclass(frozen=True)
class Roles:
    """The columns that a task uses.

    conversation: the column of a conversation; the task then has neither inputs nor an output.
    inputs, output: the columns of the prompt and of the completion.
    options: the answers that a row can be given, each with the column that holds its text, as in A, B, C, D.
    ties: columns that could be the output as well.
    group: the column that several rows have in common, such as a user or a document.
    is_guess: whether the output has no usual name of one.
    """

    conversation: Column | None = None
    inputs: tuple[Column, ...] = ()
    output: Column | None = None
    system: Column | None = None
    history: Column | None = None
    tools: Column | None = None
    tests: Column | None = None
    reasoning: Column | None = None
    rejected: Column | None = None
    languages: tuple[str, str] | None = None
    flags: tuple[Column, ...] = ()
    options: tuple[tuple[str, Column], ...] = ()
    ties: tuple[Column, ...] = ()
    group: Column | None = None
    is_guess: bool = False


def find_roles(sample: Sample) -> Roles:
    """The most likely roles of the columns. Raises DataError for a file whose columns cannot be input and output."""
    columns = read_columns(sample)
    if {column.name for column in columns} in ({"from", "value"}, {"role", "content"}):
        message = 'its rows are the turns of a conversation; write one conversation per row: {"messages": [{…}, {…}]}'
        raise DataError(Problem(message, sample.data))
    tools = _tools(_named(columns, names.TOOLS))
    roles = Roles(
        system=_named([column for column in columns if column.is_scalar], names.SYSTEM),
        history=_pairs(_named(columns, names.HISTORY)),
        tools=tools,
        tests=_named([column for column in columns if not column.keys], names.TESTS),
        reasoning=_named([column for column in columns if column.kind == "text"], names.REASONING),
        rejected=_named(columns, names.REJECTED),
        group=find_group([column for column in columns if not has_output_name(column)]),
    )
    if conversation := _conversation(columns):
        if turns := _prompt_and_answer(columns):
            return replace(roles, inputs=turns[:1], output=turns[1], history=None)
        return replace(roles, conversation=conversation, history=None)
    roles = replace(roles, tools=None)
    usable = [column for column in columns if _is_usable(column)]
    if pair := _translation(usable):
        (source, target), languages = pair
        return replace(roles, inputs=(source,), output=target, languages=languages)
    candidates = [column for column in usable if not _is_ignored(column) and column.name not in _others(roles)]
    output, ties = find_output(sample, candidates, columns)
    options = find_options([column for column in usable if column.name not in _others(roles)], output)
    option_sources = {column.source for _, column in options}
    left = [column for column in columns if column.source not in {output.source, *option_sources}]
    inputs = _inputs([column for column in left if not _is_group_id(column, roles)], output, roles)
    inputs = inputs or _inputs(left, output, roles)
    if not inputs:
        raise DataError(Problem(_no_input(columns, output), sample.data))
    flags = _flags(candidates, output)
    return replace(
        roles,
        inputs=inputs,
        output=output,
        options=options,
        ties=ties,
        flags=flags,
        is_guess=not has_output_name(output),
    )


def _named(columns: Sequence[Column], wanted: Sequence[str]) -> Column | None:
    """The column with the first of the names; by its whole name."""
    by_name = {column.normalized: column for column in reversed(columns) if column.present}
    return next((by_name[name] for name in wanted if name in by_name), None)


def _tools(column: Column | None) -> Column | None:
    """The column if it holds the schemas of tools."""
    if column is None or column.keys:
        return None
    try:
        for value in column.present[:50]:
            parse_tools(column.source, value)
    except DataError:
        return None
    return column


def _pairs(column: Column | None) -> Column | None:
    """The column if it holds lists of [prompt, answer] pairs."""
    if column is None or column.keys:
        return None
    pairs = [pair for value in column.present for pair in (value if isinstance(value, list) else [value])]
    return column if pairs and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs) else None


def _conversation(columns: Sequence[Column]) -> Column | None:
    """The column with a conversation, the one with a usual name first."""
    found = [column for column in columns if is_conversation(column)]
    kept = [column for column in found if names.rank(column.normalized, column.words, names.REJECTED) is None]

    def order(column: Column) -> int:
        place = names.rank(column.normalized, column.words, names.CONVERSATIONS)
        return len(names.CONVERSATIONS) * 3 if place is None else place

    return min(kept or found, key=order, default=None)


def _prompt_and_answer(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    """A column of messages that end with the user's, and that of the messages that answer them."""
    prompts = [column for column in columns if is_prompt_of_messages(column)]
    answers = [
        column for column in columns if column.normalized in ("completion", "chosen") and is_conversation(column)
    ]
    return (prompts[0], answers[0]) if prompts and answers else None


def _is_usable(column: Column) -> bool:
    """Whether a column can be an output: text, number, boolean or a list of texts, with several values."""
    is_text = column.is_scalar or column.kind == "texts"
    return is_text and not column.is_constant and column.num_given >= MIN_PRESENT * len(column.values)


def _is_ignored(column: Column) -> bool:
    """Whether a column is an id, an address, a date, a split or similar."""
    known = names.rank(column.normalized, column.words, [name for group in names.OUTPUTS for name in group])
    if names.rank(column.normalized, column.words, names.IGNORED) is not None and known is None:
        return True
    probed = column.texts[:300]
    if not probed:
        return True
    for pattern in (_URL, _DATE, _UUID):
        if sum(pattern.fullmatch(text.strip()) is not None for text in probed) > 0.9 * len(probed):
            return True
    if column.kind == "number" and known is None:
        numbers = [value for value in column.present if isinstance(value, int)]
        rises = sum(second == first + 1 for first, second in zip(numbers, numbers[1:], strict=False))
        return len(numbers) > 10 and rises > 0.9 * len(numbers)
    return False


def _is_group_id(column: Column, roles: Roles) -> bool:
    """Whether a column has the id of a group in a word, not a text that its rows are about."""
    return column == roles.group and column.mean_words < 2


def _others(roles: Roles) -> set[str]:
    """The names of columns with another role."""
    columns = (roles.system, roles.history, roles.tests, roles.reasoning, roles.rejected)
    return {column.name for column in columns if column is not None}


def _translation(columns: Sequence[Column]) -> tuple[tuple[Column, Column], tuple[str, str]] | None:
    """Two columns of text whose names are languages."""
    found = [(column, names.language_of(column.words)) for column in columns if column.kind == "text"]
    pairs = [(column, language) for column, language in found if language is not None]
    if len(pairs) != 2 or pairs[0][1] == pairs[1][1]:
        return None
    (source, first), (target, second) = pairs
    return (source, target), (first, second)


def _inputs(columns: Sequence[Column], output: Column, roles: Roles) -> tuple[Column, ...]:
    """The columns of the prompt."""
    taken = _others(roles) | {output.name}
    possible = [
        column
        for column in columns
        if column.present
        and column.name not in taken
        and not set(column.words) & set(names.REJECTED)
        and (column.is_scalar or column.kind == "texts" or is_prompt_of_messages(column))
    ]
    by_name = {column.normalized: column for column in reversed(possible)}
    primary = next((by_name[name] for name in names.PRIMARY if name in by_name), None)
    if primary is not None:
        allowed = names.COMPANIONS if primary.normalized != "prompt" else ()
        companions = [column for column in possible if column.normalized in allowed and not column.is_constant]
        first = [column for column in companions if column.normalized in names.CONTEXTS]
        last = [column for column in companions if column not in first]
        return (*first, primary, *last)
    possible = [column for column in possible if not _is_ignored(column) and not column.is_constant]
    named = [c for c in possible if names.rank(c.normalized, c.words, names.INPUTS) is not None and _is_text(c)]
    originals = [column for column in named if not set(column.words) & set(names.DERIVED)]
    named = originals or named
    free = [column for column in named if not looks_like_labels(column)]  # `source` may be where a row comes from
    named = free or named
    if len(named) > 1:  # a title helps with a text, but a document has the same in its first line
        named = [c for c in named if c.normalized != "title" or _has_part(named)]
    texts = [column for column in possible if _is_text(column) and column.mean_words >= 3 and _varies(column)]
    chosen = named or texts
    if not chosen:
        chosen = [column for column in possible if not has_output_name(column)] or possible
    return tuple(chosen[:MAX_INPUTS])


def _has_part(columns: Iterable[Column]) -> bool:
    """Whether one of the columns is a text that its title is a part of."""
    parts = ("body", "content", "text", "description", "review", "message", "comment")
    return any(word in parts for column in columns for word in column.words)


def _is_text(column: Column) -> bool:
    return column.kind in ("text", "texts", "mixed")


def _varies(column: Column) -> bool:
    return column.num_distinct > 0.2 * len(column.present)


def is_flag(column: Column) -> bool:
    """Whether a column holds 0 and 1, or false and true."""
    return bool(column.present) and set(column.counts) <= {"0", "1", "true", "false"}


def _flags(candidates: Sequence[Column], output: Column) -> tuple[Column, ...]:
    """Columns of 0 and 1 beside an output of that kind: one per label of several."""
    flags = [column for column in candidates if is_flag(column)]
    return tuple(flags) if len(flags) >= 3 and output in flags else ()


def find_options(columns: Sequence[Column], output: Column) -> tuple[tuple[str, Column], ...]:
    """The columns that the values of the output name: `A` or `option_a` for the value A. Empty unless all are found."""
    by_name: dict[str, Column] = {}
    for column in reversed(columns):
        if column.source != output.source and column.is_scalar:
            is_prefixed = len(column.words) == 2 and column.words[0] in names.OPTIONS
            by_name[column.words[1] if is_prefixed else column.name.lower()] = column
    values = sorted(output.counts)
    found = [(value, by_name[value.lower()]) for value in values if value.lower() in by_name]
    if len(values) < 2 or len(found) < len(values):
        return ()
    # An option that is never right belongs to the question too.
    prefixes = {column.words[0] for _, column in found if len(column.words) == 2}
    letters = {value.lower() for value in values}
    more = [
        (name.upper() if values[0].isupper() else name, column)
        for name, column in by_name.items()
        if name not in letters and len(name) == 1 and (not prefixes or column.words[0] in prefixes)
    ]
    return tuple(sorted([*found, *more], key=lambda option: option[0]))


def _no_input(columns: Sequence[Column], output: Column) -> str:
    others = [column for column in columns if not column.keys and column.source != output.source]
    reasons = listed([f"{column.name}: {why_unused(column)}" for column in others])
    return (
        f"the answer is in the column {output.name}, and no other column can be the prompt ({reasons}); add a column "
        "with the text that the model is given"
    )
