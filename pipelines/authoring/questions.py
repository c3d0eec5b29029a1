"""The questions of `alfine init --interactive`, each with the guess as its default."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import click

from pipelines.authoring.columns import Column, is_conversation, read_columns
from pipelines.authoring.job import Choices
from pipelines.authoring.kinds import KINDS, Kind, find_kind
from pipelines.authoring.roles import Roles
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
        choices = replace(choices, kind=cast(Kind, kind), labels=choices.labels if "labels" in kind else None)
    metric = _ask("Metric", KINDS[kind][1], _metric, options=list(METRICS))
    base_model = _ask("Base model", choices.base_model, _base_model)
    return replace(choices, metric=None if metric == KINDS[kind][1] else metric, base_model=base_model)


def _ask_columns(columns: dict[str, Column], guess: Choices) -> Choices:
    roles = guess.roles
    output_name = roles.conversation.name if roles.conversation else roles.output.name if roles.output else ""
    output = columns.get(
        _ask("Column of the answer, or of the conversation", output_name, lambda t: _one_of(t, columns))
    )
    if output is not None and is_conversation(output):
        return replace(guess, roles=replace(roles, conversation=output, inputs=(), output=None), kind="conversation")
    known = {column.name: column for column in roles.inputs} | columns
    others = [name for name, column in known.items() if output is None or column.source != output.source]
    default = ", ".join(column.name for column in roles.inputs) or (others[0] if others else "")
    listed = _ask("Columns of the prompt, separated by commas", default, lambda text: _several(text, others))
    inputs = tuple(known[name.strip()] for name in _several(listed, others).split(", "))
    if output is None or (output == roles.output and inputs == roles.inputs):
        return replace(guess, roles=replace(roles, inputs=inputs))
    changed = Roles(
        inputs=inputs, output=output, system=roles.system, history=roles.history, tests=roles.tests, notes=roles.notes
    )
    kind, labels, _ = find_kind(changed)
    return replace(guess, roles=changed, kind=kind, labels=labels)


def _ask(question: str, default: str, check: Callable[[str], str], options: Sequence[str] = ()) -> str:
    """Asks until the answer is valid. A line of standard input is an answer, as from a pipe."""
    hint = f" ({', '.join(options)})" if options else ""
    while True:
        click.echo(f"{question}{hint} [{default}]: ", err=True, nl=False)
        line = sys.stdin.readline()
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
    """The columns in a text; a name may contain a comma."""
    if text in known:
        return text
    return ", ".join(_one_of(name.strip(), dict.fromkeys(known)) for name in text.split(","))


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
