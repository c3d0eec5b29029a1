"""The templates of a task: how its columns become a prompt and a completion."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.authoring import names
from pipelines.authoring.columns import Column
from pipelines.authoring.kinds import MAX_LABELS, MAX_LABELS_CHARACTERS, Kind, Labels, choices_column
from pipelines.authoring.roles import Roles

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


NO_ANSWER = "No answer."
"""The completion of a question that its context does not answer."""
NO_LABEL = "none"
"""The completion of a row that has none of several labels."""


def has_unanswered(output: Column) -> bool:
    """Whether the answers are lists in objects, as in SQuAD, some of them empty: their questions have no answer."""
    return output.kind == "texts" and bool(output.keys) and output.num_missing > 0


@dataclass(frozen=True)
class Templates:
    """The keys of a task that say what a prompt and a completion are."""

    prompt: str
    completion: str
    is_jinja: bool
    lists_labels: bool = False

    def as_keys(self) -> dict[str, str]:
        """The keys in the config."""
        return {
            **({"template": "jinja"} if self.is_jinja else {}),
            "prompt": self.prompt,
            "completion": self.completion,
        }


def write_templates(roles: Roles, kind: Kind, labels: Labels | None, *, all_labels_known: bool) -> Templates:
    """The templates of a task that is no conversation.

    all_labels_known: whether the labels are those of all rows, so that a prompt may list them.
    """
    output = roles.output
    assert output is not None
    listed = _listed_labels(labels) if all_labels_known else None
    is_jinja = _needs_jinja(roles, kind, labels)
    if listed is not None and any(mark in listed for mark in ("{{", "{%", "{#", "%}", "#}")):
        listed = None  # they would be read as Jinja
    task = _task_text(roles, kind, listed)
    if task is not None and not is_jinja:
        task = task.replace("{", "{{").replace("}", "}}")
    parts = [*([task] if task else []), *_input_parts(roles, kind, is_jinja)]
    prompt = "".join(parts[:1]) + "".join(part if part.startswith("{% if") else f"\n\n{part}" for part in parts[1:])
    return Templates(prompt, _completion(output, roles, kind, labels, is_jinja), is_jinja, listed is not None)


def _listed_labels(labels: Labels | None) -> str | None:
    """The labels in the order of the alphabet, if a prompt can list them."""
    if labels is None or len(labels.values) > MAX_LABELS or any("\n" in label for label in labels.values):
        return None
    text = ", ".join(sorted(labels.values))
    return text if len(text) <= MAX_LABELS_CHARACTERS else None


def _needs_jinja(roles: Roles, kind: Kind, labels: Labels | None) -> bool:
    output = roles.output
    assert output is not None
    columns = [*roles.inputs, output]
    if len(roles.inputs) == 1 and roles.inputs[0].kind == "list":
        return False  # a prompt of messages
    has_gaps = len(roles.inputs) > 1 and any(column.num_missing for column in roles.inputs)
    separated = labels is not None and labels.separator not in (None, ",")
    return (
        any(not column.has_placeholder for column in columns)
        or has_gaps
        or separated
        or bool(roles.flags)
        or any(column.num_missing or not column.has_placeholder for _, column in roles.options)
        or roles.system is not None
        or kind == "choices"
        or (kind == "several labels" and output.num_missing > 0)
    )


def _task_text(roles: Roles, kind: Kind, listed: str | None) -> str | None:
    """The sentences that say what to do; None if the row says it."""
    output = roles.output
    assert output is not None
    choose = f"Answer with one of: {listed}." if listed else None
    if kind == "several labels":
        or_none = f", or with {NO_LABEL}" if roles.flags or output.num_missing else ""
        choose = f"Answer with one or more of: {listed}{or_none}." if listed else None
    if kind == "choices":
        return None
    if any(column.normalized in names.PRIMARY for column in roles.inputs) or _is_messages(roles):
        return choose
    if roles.languages is not None:
        return f"Translate from {roles.languages[0]} to {roles.languages[1]}."
    what = _phrase(output)
    if kind in ("labels", "several labels"):
        many = "What are the labels?" if roles.flags else f"What is the {what}?"
        return f"{many} {choose}" if choose else many
    if output.words[:1] and output.words[0] in ("summary", "summaries", "highlights", "tldr"):
        return "Summarize the text."
    if output.normalized in ("output", "completion", "response", "answer", "answers", "target", "targets", "reply"):
        is_summary = (
            output.normalized in ("target", "targets") and roles.inputs[0].mean_words > 3 * output.mean_words > 30
        )
        return "Summarize the text." if is_summary else None
    return f"Write the {what}."


def _is_messages(roles: Roles) -> bool:
    return len(roles.inputs) == 1 and roles.inputs[0].kind == "list"


def _phrase(column: Column) -> str:
    words = (column.keys[-1] if column.keys else column.source).replace("_", " ").strip()
    return words.lower() if words.isprintable() and words else "answer"


def _input_parts(roles: Roles, kind: Kind, is_jinja: bool) -> list[str]:
    """The inputs, each as a part of the prompt; with its name if there are several that are no question."""
    named = len(roles.inputs) > 1 and not any(column.normalized in names.PRIMARY for column in roles.inputs)
    parts = []
    for column in roles.inputs:
        if kind == "choices" and column is choices_column(roles):
            line = f'{{{{ "{LETTERS}"[loop.index0] }}}}. {{{{ choice }}}}\n'
            parts.append(f"{{% for choice in {column.expression} %}}{line}{{% endfor %}}Answer with a letter.")
            continue
        label = f"{_phrase(column).capitalize()}: " if named else ""
        label = label if is_jinja else label.replace("{", "{{").replace("}", "}}")
        text = f"{label}{_reference(column, is_jinja)}"
        if is_jinja and column.num_missing and len(roles.inputs) > 1:
            # The first part has no blank line before it; it may be missing too.
            text = f"{{% if {column.expression} %}}\n\n{text}{{% endif %}}" if parts else f"{text}"
        parts.append(text)
    return [*parts, *_option_part(roles, is_jinja)]


def _option_part(roles: Roles, is_jinja: bool) -> list[str]:
    """The options of a multiple-choice question, a line each, as one part of the prompt."""
    lines = []
    for value, column in roles.options:
        name = value if is_jinja else value.replace("{", "{{").replace("}", "}}")
        line = f"{name}. {_reference(column, is_jinja)}"
        lines.append(f"{{% if {column.expression} %}}{line}\n{{% endif %}}" if column.num_missing else f"{line}\n")
    return ["Options:\n" + "".join(lines).removesuffix("\n")] if lines else []


def _reference(column: Column, is_jinja: bool) -> str:
    if not is_jinja:
        return f"{{{column.source}}}"
    if column.kind == "texts":
        return f'{{{{ {column.expression} | join("\\n") }}}}'
    return f"{{{{ {column.expression} }}}}" if not column.num_missing else f'{{{{ {column.expression} or "" }}}}'


def _completion(output: Column, roles: Roles, kind: Kind, labels: Labels | None, is_jinja: bool) -> str:
    if not is_jinja:
        return f"{{{output.source}}}"
    expression = output.expression
    if roles.flags:
        pairs = ", ".join(
            f'"{column.name}" if {column.expression} | string in ("1", "True", "true") else ""'
            for column in roles.flags
        )
        return f'{{{{ [{pairs}] | select | join(", ") or "{NO_LABEL}" }}}}'
    if kind == "choices":
        return f'{{{{ "{LETTERS}"[{expression}] }}}}'
    if kind == "several labels":
        return f"{{{{ {_joined_labels(output, labels)} }}}}"
    if output.kind == "texts":
        otherwise = f' if {expression} else "{NO_ANSWER}"' if has_unanswered(output) else ""
        return f"{{{{ {expression}[0]{otherwise} }}}}"
    return f"{{{{ {expression} }}}}"


def _joined_labels(output: Column, labels: Labels | None) -> str:
    """The labels of a row, separated by commas, as an expression of Jinja."""
    expression = output.expression
    given = f'({expression} or "")' if output.num_missing else expression
    otherwise = f' or "{NO_LABEL}"' if output.num_missing else ""
    if output.kind == "texts":
        return f'{given} | join(", "){otherwise}'
    if labels is not None and labels.separator not in (None, ","):
        return f'{given} | replace("{labels.separator}", ", "){otherwise}'
    return f"{expression}{otherwise}"
