"""Keys and values of earlier versions of alfine: each is an error that names the key or value to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pipelines.config.messages import KeyPath, dotted
from pipelines.config.yaml_source import Document


@dataclass(frozen=True)
class Rename:
    """A key that has another name now, or the same name and other values."""

    key: str
    """The new name."""
    new_value: Callable[[Any], Any] = lambda value: value
    """The new value of an old one; any other value is returned unchanged."""


def _renamed_values(names: Mapping[Any, Any]) -> Callable[[Any], Any]:
    return lambda value: names.get(value, value) if isinstance(value, str | bool) else value


def _nonfinite_steps(value: Any) -> Any:
    """`stop` and `skip 3` as the number of steps that may be skipped."""
    skip = re.fullmatch("skip ([0-9]+)", value) if isinstance(value, str) else None
    return 0 if value == "stop" else int(skip[1]) if skip else value


RENAMED: dict[str, Rename] = {
    "pipeline.after": Rename("continue_from"),
    "pipeline.on_nan": Rename("max_nonfinite_steps", _nonfinite_steps),
    "pipeline.tasks.*.group": Rename("cluster_by"),
    "pipeline.report.prompts": Rename("sample_prompts"),
    "pipeline.report.gates.*.least_gain": Rename("min_gain"),
    "pipeline.report.gates.*.greatest_loss": Rename("max_drop"),
    "pipeline.report.gates.*.of": Rename("by", _renamed_values({"interval": "ci", "value": "point_estimate"})),
    "pipeline.forgetting.guards": Rename("evals"),
    "pipeline.forgetting.evals.*.kind": Rename(
        "kind", _renamed_values({"choices": "multiple_choice", "text": "text_nll", "answers": "kl"})
    ),
    "pipeline.forgetting.evals.*.rows": Rename("limit"),
    "pipeline.forgetting.every": Rename("eval_steps"),
    "pipeline.forgetting.budget": Rename("max_regression"),
    "pipeline.forgetting.ewc.strength": Rename("weight"),
    "pipeline.forgetting.ewc.sequences": Rename("fisher_samples"),
    "pipeline.forgetting.ewc.decay": Rename("gamma"),
    "pipeline.forgetting.si.strength": Rename("weight"),
    "pipeline.forgetting.si.warm_steps": Rename("importance_steps"),
    "pipeline.forgetting.replay.share": Rename("fraction"),
    "pipeline.forgetting.distill.strength": Rename("weight"),
    "pipeline.forgetting.distill.share": Rename("fraction"),
    "pipeline.forgetting.distill.rows": Rename("apply_to", _renamed_values({"replay": "general", "tasks": "task"})),
    "pipeline.forgetting.l2sp.strength": Rename("weight"),
    "pipeline.forgetting.interpolate.budget": Rename("max_loss_increase"),
    "backend.trainer.shard_base": Rename("fsdp", _renamed_values({True: "frozen", False: None})),
}
"""Old dotted key → the new one. `*` matches a name that the user chooses; parent keys have their new names."""


def rename_old_keys(document: Document) -> None:
    """Reports every old key and value, and moves it to its new key, so that it has no further problems."""
    _rename_in(document, document.value, ())


def _rename_in(document: Document, section: Any, path: KeyPath) -> None:
    if not isinstance(section, dict):
        return
    for key in list(section):
        rename = _rename_of((*path, key))
        if rename is None:
            continue
        value = section[key]
        new_value = rename.new_value(value)
        if rename.key == key and new_value == value:
            continue
        document.problems.append(document.problem(_message(document, rename, new_value, (*path, key)), *path, key))
        del section[key]
        if rename.key not in section:
            section[rename.key] = new_value
            document.move((*path, key), (*path, rename.key))
    for key, value in section.items():
        _rename_in(document, value, (*path, key))


def _rename_of(path: KeyPath) -> Rename | None:
    name = dotted(path)
    return next((rename for pattern, rename in RENAMED.items() if fnmatchcase(name, pattern)), None)


def _message(document: Document, rename: Rename, new_value: Any, path: KeyPath) -> str:
    old_text = document.raw_text(*path)
    if rename.key == path[-1]:
        return f"{dotted(path)}: {old_text} was renamed to {new_value}; write {rename.key}: {new_value}"
    text = "null" if new_value is None else str(new_value) if isinstance(new_value, str | int | float) else "…"
    return f"{dotted(path)} was renamed to {rename.key}; write {rename.key}: {text}"
