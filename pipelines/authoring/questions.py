"""The questions of `alfine init --interactive`, each with the guess as its default."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import click

from pipelines.authoring.columns import Column, is_conversation, read_columns
from pipelines.authoring.job import Choices
from pipelines.authoring.kinds import KINDS, Kind, find_kind
from pipelines.authoring.roles import Roles, find_options, is_flag
from pipelines.authoring.sample import Sample
from pipelines.config.messages import did_you_mean, shorten
from pipelines.errors import AlfineError, ConfigError
from pipelines.modeling.base_models import check_base_model
from pipelines.scoring.metric import METRICS, metric_hint

MAX_LISTED = 40
"""Columns that are listed."""


def ask(sample: Sample, guess: Choices) -> Choices:
    """The choices after the user's answers. An empty answer, and the end of the input, accept the guess."""
    columns = {column.name: column for column in read_columns(sample)}
    for column in list(columns.values())[:MAX_LISTED]:
        example = column.texts[0] if column.present else ""
        click.echo(f"  {shorten(column.name, 30).ljust(30)}  {column.kind.ljust(8)}  {shorten(example, 60)}", err=True)
    if len(columns) > MAX_LISTED:
        click.echo(f"  and {len(columns) - MAX_LISTED:,} more", err=True)
    choices = _ask_columns(columns, guess)
    kind = _ask("Kind of answer", choices.kind, lambda text: _one_of(text, KINDS), options=list(KINDS))
    if kind != choices.kind:
        labels = choices.labels if "labels" in kind else None
        choices = replace(choices, kind=cast(Kind, kind), labels=labels, notes=())
    metric = _ask("Metric", KINDS[kind][1], _metric, options=list(METRICS))
    base_model = _ask("Base model", choices.base_model, _base_model)
    return replace(choices, metric=None if metric == KINDS[kind][1] else metric, base_model=base_model)


def _ask_columns(columns: dict[str, Column], guess: Choices) -> Choices:
    roles = guess.roles
    answers = roles.flags or tuple(column for column in (roles.conversation, roles.output) if column is not None)[:1]
    question = "Column of the answer, or of the conversation (or several columns of 0 and 1)"
    default = ", ".join(column.name for column in answers)
    text = _ask(question, default, lambda text: _answer_columns(text, columns))
    output, *more = (columns[name] for name in _split_names(text, columns))
    if not more and is_conversation(output):
        return replace(
            guess,
            roles=_without(replace(roles, conversation=output, inputs=(), output=None), output),
            kind="conversation",
        )
    sources = {output.source, *(column.source for column in more)}
    known = {column.name: column for column in roles.inputs} | columns
    others = [name for name, column in known.items() if column.source not in sources]
    if not others:
        raise ConfigError(f"no column is left for the prompt beside {text}; name another answer")
    inputs = [column.name for column in roles.inputs if column.source not in sources]
    listed = _ask(
        "Columns of the prompt, separated by commas", ", ".join(inputs) or others[0], lambda t: _several(t, others)
    )
    chosen = tuple(known[name] for name in _split_names(listed, known))
    if text == default and chosen == roles.inputs:
        return guess
    if text != default:
        free = [column for column in columns.values() if column not in chosen]
        roles = replace(
            roles,
            conversation=None,
            output=output,
            flags=(output, *more) if more else (),
            options=find_options(free, output),
            languages=None,
            ties=(),
            is_guess=False,
        )
    options = tuple(option for option in roles.options if option[1] not in chosen)
    changed = _without(replace(roles, inputs=chosen, options=options), output, *more, *chosen)
    kind, labels, notes = find_kind(changed)
    return replace(guess, roles=changed, kind=kind, labels=labels, notes=tuple(notes))


def _without(roles: Roles, *columns: Column) -> Roles:
    """The roles without those whose columns are taken for the prompt or the answer."""
    sources = {column.source for column in columns}

    def free(column: Column | None) -> Column | None:
        return None if column is not None and column.source in sources else column

    return replace(
        roles,
        system=free(roles.system),
        history=free(roles.history),
        tests=free(roles.tests),
        reasoning=free(roles.reasoning),
        rejected=free(roles.rejected),
    )


def _ask(question: str, default: str, check: Callable[[str], str], options: Sequence[str] = ()) -> str:
    """Asks until the answer is valid. A line of standard input is an answer, as from a pipe."""
    hint = f" ({', '.join(options)})" if options else ""
    while True:
        click.echo(f"{question}{hint} [{default}]: ", err=True, nl=False)
        try:
            line = sys.stdin.readline() if sys.stdin is not None else ""  # None: it is closed
        except UnicodeDecodeError:
            raise ConfigError("the answer is not UTF-8 text") from None
        if not line:
            click.echo(f"\nend of input: {default}", err=True)
            return default
        if not sys.stdin.isatty():
            click.echo(line.rstrip("\n"), err=True)
        try:
            return check(line.strip()) if line.strip() else default
        except AlfineError as error:
            click.echo(str(error), err=True)


def _one_of(text: str, known: Mapping[str, Any]) -> str:
    if text in known:
        return text
    similar = did_you_mean(text, known)
    raise ConfigError(
        f"there is no {text!r}; {f'did you mean {similar}?' if similar else f'write one of {_listed(known)}'}"
    )


def _several(text: str, known: Sequence[str]) -> str:
    """The columns in a text, each once; a name may contain a comma. Raises ConfigError for one that is unknown."""
    if text in known:
        return text
    names = [_one_of(name.strip(), dict.fromkeys(known)) for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"there is no column in {text!r}; write one of {_listed(known)}")
    return ", ".join(dict.fromkeys(names))


def _answer_columns(text: str, columns: Mapping[str, Column]) -> str:
    names = _several(text, list(columns))
    several = _split_names(names, columns)
    if len(several) > 1 and (others := [name for name in several if not is_flag(columns[name])]):
        raise ConfigError(f"several columns are an answer only if they hold 0 and 1, which {others[0]} does not")
    return names


def _split_names(text: str, known: Container[str]) -> list[str]:
    """The names in a text of `_several`."""
    return [text] if text in known else text.split(", ")


def _listed(known: Iterable[str]) -> str:
    return shorten(", ".join(known), 300)


def _metric(text: str) -> str:
    module, colon, function = text.partition(":")
    if text not in METRICS and not (colon and module and function):
        raise ConfigError(f"unknown metric {text!r}; {metric_hint(text)}")
    return text


def _base_model(text: str) -> str:
    check_base_model(text)
    return text
