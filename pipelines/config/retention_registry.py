"""The registry of the retention evals, and their settings in `pipeline.forgetting.evals`.

Every module of `pipelines/evaluation/retention_evals/` registers one kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from pipelines.config.base import Count, Section, Text
from pipelines.registry import Registry

HUB = "hub:"
"""Prefix of the `data` of a retention eval that is a file of a data set on the Hub: hub:OWNER/NAME/FILE."""


class RetentionEvalSettings(Section):
    """Settings of one retention eval: rows on which the tuned model is compared with its base."""

    bundled: ClassVar[Mapping[str, str]] = {}
    """The evals of this kind in `evals: bundled`: name → file in data/."""
    list_order: ClassVar[int] = 100
    """Kinds are listed in this order, and run in it as bundled evals."""

    kind: str = Field(description="The kind: the name of a module in pipelines/evaluation/retention_evals/.")
    data: Text = Field(description="The file of rows; hub:OWNER/NAME/FILE is a file of a data set on the Hub.")
    limit: Count | None = Field(default=None, description="The number of rows that are read, from the first on.")

    @property
    def templates(self) -> dict[str, str]:
        """The templates that the rows fill, by key: `prompt` and `completion`. Empty for a kind without templates."""
        return {}

    @property
    def metric_name(self) -> str:
        """The metric that scores completions, as in the YAML; "" for a kind that generates none."""
        return ""


RETENTION_EVAL_KINDS: Registry[type[RetentionEvalSettings]] = Registry("pipelines.evaluation.retention_evals")
"""The kinds of retention evals by name. The classes are `pipelines.evaluation.retention.RetentionEval`s."""


def retention_eval_kinds() -> dict[str, type[RetentionEvalSettings]]:
    """All kinds by name, in the order in which they are listed."""
    return dict(sorted(RETENTION_EVAL_KINDS.items(), key=lambda item: (item[1].list_order, item[0])))


def bundled_evals() -> dict[str, tuple[str, str]]:
    """The evals of `evals: bundled`: name → kind and file in data/."""
    return {
        name: (kind, file)
        for kind, settings in retention_eval_kinds().items()
        for name, file in settings.bundled.items()
    }


def parse_retention_eval(value: Any) -> Any:
    """Validates the settings of one retention eval by its kind. A value that is not a mapping is left to pydantic."""
    if not isinstance(value, dict):
        return value
    kinds, kind = retention_eval_kinds(), value.get("kind")
    if "kind" not in value:
        raise _kind_error({"type": "missing", "input": value})
    if not isinstance(kind, str) or kind not in kinds:
        *others, last = map(repr, kinds)
        expected = f"{', '.join(others)} or {last}"
        raise _kind_error({"type": "literal_error", "input": kind, "ctx": {"expected": expected}})
    for key in value.keys() - kinds[kind].model_fields:
        if others := [name for name, settings in kinds.items() if key in settings.model_fields]:
            raise ValueError(f"{key} is only valid with kind: {' or '.join(others)}; remove it")
    return kinds[kind].model_validate(value)


def _kind_error(details: InitErrorDetails) -> ValidationError:
    return ValidationError.from_exception_data("retention eval", [{**details, "loc": ("kind",)}])


RetentionEvalByKind = Annotated[SerializeAsAny[RetentionEvalSettings], BeforeValidator(parse_retention_eval)]
"""A field that holds the settings class of the `kind` in the YAML."""
