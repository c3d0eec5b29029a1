"""The chat template of an export: what the run was prompted with, as far as a template file can say it.

A run fixes what transformers' `apply_chat_template` does not: the variables of the template, the date, and the text of
a prompt up to the first token that is trained (for some models an empty thought, or no space at the end).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from pipelines.data.chat_template import ChatTemplate, ChatTemplateError
from pipelines.exporting.source import EvaluatedPrompt, ExportSource
from pipelines.storage.strict_json import dump

_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")


@dataclass(frozen=True)
class ExportTemplate:
    """The chat template of an export.

    Attributes:
        sources: the Jinja text, or texts by name; None for a model that is prompted with plain text.
        task_variables: the variables that a task needs and that the template does not fix, since tasks differ in them.
        notes: what a user should know, as sentences.
    """

    sources: str | Mapping[str, str] | None
    task_variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def export_template(source: ExportSource, prompts: Sequence[EvaluatedPrompt]) -> ExportTemplate:
    """The template that gives the run's prompts by transformers' `apply_chat_template`."""
    template = source.prompt_format.template
    if template is None:
        note = "It was trained on plain prompts without a chat template, so the export has none."
        return ExportTemplate(None, notes=(note,))
    notes: list[str] = []
    fixed, task_variables = _split_variables(prompts)
    if task_variables:
        wanted = "; ".join(f"{task}: {_keywords(variables)}" for task, variables in task_variables.items())
        notes.append(f"Tasks differ in variables of the chat template; pass them to apply_chat_template: {wanted}.")
    texts = {"": template.sources} if isinstance(template.sources, str) else dict(template.sources)
    frozen = {name: _with_variables(_with_date(text, template, notes), fixed) for name, text in texts.items()}
    sources: str | dict[str, str] = frozen[""] if isinstance(template.sources, str) else frozen
    if isinstance(sources, str):
        sources = _with_trained_prompt(sources, template, prompts, task_variables, notes)
    return ExportTemplate(sources, task_variables, tuple(dict.fromkeys(notes)))


def _split_variables(prompts: Sequence[EvaluatedPrompt]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The variables that all prompts share, and the others by task."""
    first = dict(prompts[0].variables)
    fixed = {
        name: value
        for name, value in first.items()
        if all(name in prompt.variables and prompt.variables[name] == value for prompt in prompts)
    }
    others: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        if own := {name: value for name, value in prompt.variables.items() if name not in fixed}:
            others.setdefault(prompt.task, {}).update(own)
    return fixed, others


def _keywords(variables: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in variables.items())


def _with_variables(text: str, variables: Mapping[str, Any]) -> str:
    """The template with defaults for variables; a caller can still pass another value."""
    statements = [
        f"{{% set {name} = {name} if {name} is defined else {jinja_literal(value)} %}}"
        for name, value in variables.items()
    ]
    return "".join(statements) + text


def jinja_literal(value: Any) -> str:
    """A JSON value as a Jinja expression."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dump(str(key))}: {jinja_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(jinja_literal(item) for item in value) + "]"
    return dump(value)


def _with_date(text: str, template: ChatTemplate, notes: list[str]) -> str:
    """The template with the run's date in the place of the present day."""
    if "strftime_now" not in text or template.date is None:
        return text
    date = template.date

    def literal(match: re.Match[str]) -> str:
        pattern = match[1] if match[1] is not None else match[2]
        return dump(date.strftime(pattern))

    frozen = _DATE_CALL.sub(literal, text)
    if re.search(r"strftime_now\(", frozen):
        notes.append(f"Its chat template writes the present day; it was trained with {date.isoformat()}.")
    else:
        notes.append(f"Its chat template writes {date.isoformat()} as the present day, as in training.")
    return frozen


def _with_trained_prompt(
    text: str,
    template: ChatTemplate,
    prompts: Sequence[EvaluatedPrompt],
    task_variables: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> str:
    """The template with the end of its generation prompt replaced by that of the run's prompts, if it always differs by
    the same characters."""
    ends = {
        _replaced_end(rendered, prompt.text)
        for prompt in prompts
        if (rendered := _render(text, template, prompt, task_variables.get(prompt.task, {}))) is not None
    }
    if len(ends) != 1 or ends == {("", "")}:
        return text
    removed, added = ends.pop()
    text = text.removesuffix("\n")
    if added.strip():
        notes.append(f"Its chat template ends a prompt with {added!r}, as in training.")
    added_text = f"{{{{ {dump(added)} }}}}" if added else ""
    if not removed:
        return f"{text}{{% if add_generation_prompt %}}{added_text}{{% endif %}}"
    shortened = f"{{{{ alfine_text[:-{len(removed)}] }}}}{added_text}"
    return (
        f"{{% set alfine_text %}}{text}{{% endset %}}"
        f"{{% if add_generation_prompt %}}{shortened}{{% else %}}{{{{ alfine_text }}}}{{% endif %}}"
    )


def _replaced_end(rendered: str, trained: str) -> tuple[str, str]:
    """The end of `rendered` that is not in `trained`, and what `trained` has instead."""
    length = len(commonprefix([rendered, trained]))
    return rendered[length:], trained[length:]


def _render(text: str, template: ChatTemplate, prompt: EvaluatedPrompt, variables: Mapping[str, Any]) -> str | None:
    """The prompt that a template without the run's variables gives; None if it refuses the messages."""
    plain = template.replaced(text)
    try:
        return plain.render(prompt.messages, add_generation_prompt=True, tools=prompt.tools, kwargs=variables)
    except ChatTemplateError:
        return None
