"""Retention evals: what the base model could do and the tuned model should still do, measured item by item.

Each kind is a class in one file of `pipelines/evaluation/retention_evals/`. This module loads without torch, since the
classes also validate the config, check the files and tell the report what a score means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

from pipelines.config.forgetting import Forgetting
from pipelines.config.retention_registry import RETENTION_EVAL_KINDS, RetentionEvalSettings, bundled_evals
from pipelines.config.strategy_registry import STRATEGIES
from pipelines.console.activity import track_activity
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.data_files import bundled_file, read_text_column, resolve_data_file
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.registry import lazy_import
from pipelines.scoring.metric import Unit
from pipelines.storage.records import RetentionRecord

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = lazy_import("numpy")  # 0.2 s that loading a config does not need

ReferenceLogits = Callable[[TokenSequences], "torch.Tensor"]
"""Returns the logits of the reference model, which is the model that the job starts from, at the supervised tokens:
[supervised tokens, vocabulary]."""


@dataclass(frozen=True)
class Measure:
    """What the scores of a retention eval measure."""

    title: str
    """The name of the measure in tables."""
    unit: Unit
    binary: bool = False
    """Whether every score is 0 or 100."""
    higher_is_better: bool = False
    is_divergence: bool = False
    """Whether the score is a divergence from the base model: 0 for the base, never negative, hence not tested."""
    long_title: str = ""
    """The name of the measure in a sentence; `title` if empty."""


class Items(Protocol):
    """The items of a prepared eval: a sequence that can be sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


@dataclass(frozen=True)
class PreparationContext:
    """What a kind needs to prepare its items for one base model."""

    prompt_format: PromptFormat
    load_model: Callable[[], LoadedModel]
    model_fingerprint: str
    """Identifies the content of the base model in caches."""
    system: str | None
    """The job's system prompt."""


@dataclass(frozen=True)
class PreparedRetentionEval:
    """A retention eval that is ready to be scored on a model."""

    name: str
    kind: str
    items: Any
    """The items in the form of their kind; they can be sliced (`Items`)."""
    metric: str = ""
    """The key of the metric (`scoring.metric.metric_from_key`) for a kind that scores completions."""
    scores_after_own_task: Sequence[float | None] = ()
    """For a task of an earlier run: the score of each item right after that run, for backward transfer."""

    @property
    def eval_class(self) -> type[RetentionEval]:
        return retention_eval_class(self.kind)

    @property
    def higher_is_better(self) -> bool:
        return self.eval_class.measure(self.metric).higher_is_better

    def batches(self, size: int) -> Iterator[PreparedRetentionEval]:
        """Splits the eval into evals of `size` items, in order, to be scored by several workers."""
        for start in range(0, len(self.items), size):
            yield replace(self, items=self.items[start : start + size])


class RetentionEval(RetentionEvalSettings):
    """Base class of the kinds of retention evals. An instance holds the settings of one eval of the config.

    To add a kind, add a module to `pipelines/evaluation/retention_evals/` that registers a subclass:
    `RETENTION_EVAL_KINDS.register("my_kind", MyKind)`. Its fields are further settings in the YAML.
    """

    needs_reference_model: ClassVar[bool] = False
    """Whether `score` uses the logits of the reference model, see `ReferenceLogits`."""

    @property
    def file(self) -> Path:
        """The local file of rows; one on the Hub is downloaded once. Raises DataError."""
        return resolve_data_file(self.data)

    @classmethod
    @abstractmethod
    def measure(cls, metric: str) -> Measure:
        """What the scores mean. `metric` is that of the records, "" for a kind without one."""

    @abstractmethod
    def check(self, name: str) -> None:
        """Raises DataError for rows that cannot be used. Loads no model; `name` is that of the eval."""

    @abstractmethod
    def prepare(self, name: str, context: PreparationContext) -> Items:
        """Reads the items and tokenizes them as far as the kind needs. Raises DataError."""

    @classmethod
    @abstractmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
    ) -> Sequence[float | None]:
        """Scores each item in the unit of `measure`; None for an item that cannot be scored."""

    def examples(self, name: str) -> list[Example]:
        """The items whose references a completion is scored against; empty for a kind that generates none."""
        return []

    @classmethod
    def record_fields(cls, prepared: PreparedRetentionEval) -> Sequence[Mapping[str, Any]]:
        """Further fields of each item's record; empty if there are none."""
        return ()


def retention_eval_class(kind: str) -> type[RetentionEval]:
    """The class of a kind. Raises KeyError for an unknown one."""
    return cast(type[RetentionEval], RETENTION_EVAL_KINDS[kind])


def configured_retention_evals(forgetting: Forgetting) -> dict[str, RetentionEval]:
    """The retention evals of a config by name."""
    if forgetting.evals == "none":
        return {}
    if forgetting.evals == "bundled":
        return {
            name: retention_eval_class(kind)(kind=kind, data=str(bundled_file(file)))
            for name, (kind, file) in bundled_evals().items()
        }
    return cast(dict[str, RetentionEval], dict(forgetting.evals))


def check_retention_evals(forgetting: Forgetting) -> None:
    """Raises DataError for rows of a retention eval or of a strategy that are missing or unusable. Loads no model."""
    for strategy, key, file in forgetting.row_files():
        for column in STRATEGIES[strategy].settings.row_files[key]:
            read_text_column(Path(file), column)
    for name, retention_eval in configured_retention_evals(forgetting).items():
        retention_eval.check(name)


def prepare_retention_evals(forgetting: Forgetting, context: PreparationContext) -> list[PreparedRetentionEval]:
    """Prepares the retention evals of a config for one base model. Raises DataError."""
    return [
        PreparedRetentionEval(
            name, retention_eval.kind, retention_eval.prepare(name, context), retention_eval.metric_name
        )
        for name, retention_eval in configured_retention_evals(forgetting).items()
    ]


def score_retention_eval(
    loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
) -> list[float | None]:
    """The score of each item in the unit of the eval's measure; None for an item that could not be scored."""
    with track_activity(f"retention eval {prepared.name}"):
        return list(prepared.eval_class.score(loaded, prepared, reference_logits))


def retention_records(prepared: PreparedRetentionEval, scores: Sequence[float | None]) -> list[RetentionRecord]:
    """The records of retention/base.jsonl and retention/tuned.jsonl, one per item in their order."""
    records = []
    fields_by_item = prepared.eval_class.record_fields(prepared)
    for index, score in enumerate(scores):
        fields = dict(fields_by_item[index]) if fields_by_item else {}
        if prepared.scores_after_own_task:
            fields["score_after_own_task"] = prepared.scores_after_own_task[index]
        records.append(
            RetentionRecord(
                eval=prepared.name, kind=prepared.kind, metric=prepared.metric, item=index + 1, score=score, **fields
            )
        )
    return records


def mean_scores(
    loaded: LoadedModel, evals: Sequence[PreparedRetentionEval], reference_logits: ReferenceLogits
) -> dict[str, float]:
    """The mean score of each eval over the items that could be scored; evals without such an item are left out."""
    means = {}
    for prepared in evals:
        known = [score for score in score_retention_eval(loaded, prepared, reference_logits) if score is not None]
        if known:
            means[prepared.name] = float(np.mean(known))
    return means
