"""Retention eval `kl`: the divergence of the tuned model from its base on the base's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.data_files import read_text_column
from pipelines.evaluation.general_text import encode_answers, generate_general_answers
from pipelines.evaluation.retention import (
    Measure,
    PreparationContext,
    PreparedRetentionEval,
    ReferenceLogits,
    RetentionEval,
)
from pipelines.modeling.token_sequences import TokenSequences, micro_batches
from pipelines.registry import lazy_import
from pipelines.scoring.metric import Unit

if TYPE_CHECKING:
    import torch

    from pipelines.modeling import kl_divergence, memory
else:
    torch = lazy_import("torch")
    kl_divergence = lazy_import("pipelines.modeling.kl_divergence")
    memory = lazy_import("pipelines.modeling.memory")

MICRO_BATCH = 8
"""Sequences whose logits of both models are in memory at once."""


class KL(RetentionEval):
    """Mean KL(base ‖ tuned) in nats per token; an item is the base's greedy answer to a text of `instruction`."""

    bundled = {"answers": "retention/instructions.jsonl"}
    list_order = 2
    needs_reference_model = True

    @classmethod
    def measure(cls, metric: str) -> Measure:
        return Measure(
            "KL divergence from base",
            Unit.NATS_PER_TOKEN,
            is_divergence=True,
            long_title="KL(base ‖ tuned) on general answers",
        )

    def check(self, name: str) -> None:
        read_text_column(self.file, "instruction")

    def prepare(self, name: str, context: PreparationContext) -> TokenSequences:
        prompt_format, system = context.prompt_format, context.system
        answers = generate_general_answers(
            context.load_model, prompt_format, context.model_fingerprint, self.file, system, self.limit
        )
        return encode_answers(prompt_format, answers, system)

    @classmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: ReferenceLogits
    ) -> Sequence[float | None]:
        def score_batch(batch: TokenSequences) -> list[float]:
            with torch.no_grad():
                logits = loaded.logits(batch)
                kl = kl_divergence.kl_divergence(reference_logits(batch), logits)
            # Read from the device at once. The mean is in fp64, which not every device has.
            return [float(token_kl.double().mean()) for token_kl in kl.cpu().split(batch.supervised_lengths)]

        means: list[float | None] = []
        splitter = memory.split_tokens(f"retention eval {prepared.name}")
        for batch in micro_batches(prepared.items, MICRO_BATCH):
            for _, part_means in splitter.map(score_batch, batch):
                means += part_means
        return means


RETENTION_EVAL_KINDS.register("kl", KL)
