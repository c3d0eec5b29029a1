"""Arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from unicodedata import category

import click

from pipelines.errors import RunError

RUNS = Path("runs")
"""The folder that runs are created in."""

config_argument = click.argument("config", type=click.Path(path_type=Path))
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", type=click.Path(path_type=Path))


def check_run_name(name: str) -> str:
    """The value of --name. Raises RunError unless it consists of letters, digits and - _ . and has no leading dot."""
    if not name:
        raise RunError("--name is empty; write one, as in --name first")
    if name.startswith("."):
        raise RunError(
            f"--name {name!r}: a run's name does not begin with a dot; write --name {name.lstrip('.') or 'first'}"
        )
    # Unicode category M: the vowel signs of Hindi, Thai and others are not letters, but parts of them.
    if not all(letter.isalnum() or letter in "-_." or category(letter)[0] == "M" for letter in name):
        raise RunError(f"--name {name!r}: a run's name has letters, digits, - _ . and no slash")
    return name
