"""The grammar of `{column}` templates."""

from __future__ import annotations

import re
import string
from functools import lru_cache


@lru_cache(maxsize=256)
def parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of literal text and the column that follows it, if any. `{{` and `}}` are literal braces."""
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def placeholders(template: str) -> list[str]:
    """The columns that a template names, in order."""
    return [name for _, name in parse_template(template) if name is not None]


def column_of(template: str) -> str | None:
    """The column of a template that is one `{column}` and nothing else, None for any other text."""
    match = re.fullmatch(r"\s*\{([^{}\n]+)\}\s*", template)
    return match[1] if match else None


def check_template(template: str) -> None:
    """Raises ValueError unless every brace in `template` is a `{column}` or a literal `{{` or `}}`."""
    hint = 'write "{column}" for a column, "{{" and "}}" for braces'
    if re.search(r"\{[%#].*[%#]\}", template, re.DOTALL):
        raise ValueError("it contains a block of Jinja; write template: jinja next to it")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        unclosed = re.search(r"(?<!\{)(?:\{\{)*(\{[^{}]*)\Z", template)
        message = f"{unclosed[1][:30]!r} is not closed" if unclosed else "a } has no { before it"
        raise ValueError(f"{message}; {hint}") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.strip() or name != name.strip() or spec or conversion or re.search(r"[{}\n]", name):
            placeholder = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise ValueError(f"{placeholder[:40]!r} is not a column; {hint}")
