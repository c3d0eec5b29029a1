"""Retention eval `text_nll`: the negative log-likelihood of plain texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.data_files import read_text_column
from pipelines.evaluation.general_text import encode_passages
from pipelines.evaluation.retention import (
    Measure,
    PreparationContext,
    PreparedRetentionEval,
    ReferenceLogits,
    RetentionEval,
)
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.registry import lazy_import
from pipelines.scoring.metric import Unit

if TYPE_CHECKING:
    from pipelines.modeling import packing
else:
    packing = lazy_import("pipelines.modeling.packing")  # imports torch


class TextNll(RetentionEval):
    """Mean negative log-likelihood in nats per token; an item is a text of the column `text`."""

    bundled = {"text": "retention/passages.jsonl"}
    list_order = 1

    @classmethod
    def measure(cls, metric: str) -> Measure:
        return Measure("NLL of text", Unit.NATS_PER_TOKEN)

    def check(self, name: str) -> None:
        read_text_column(self.file, "text")

    def prepare(self, name: str, context: PreparationContext) -> TokenSequences:
        return encode_passages(context.prompt_format, self.file, self.limit)

    @classmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
    ) -> Sequence[float | None]:
        return list(packing.sequence_mean_losses(loaded.model, prepared.items))


RETENTION_EVAL_KINDS.register("text_nll", TextNll)
