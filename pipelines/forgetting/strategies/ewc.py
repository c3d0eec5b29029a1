"""Elastic weight consolidation (EWC): weight/2 · Σ F (θ − θ₀)², with F the Fisher information of the starting model.

Kirkpatrick et al. 2017, arXiv:1612.00796. F is measured on general text at the weights that the job starts from (a
pretrained model has no "task 1" that would have given it), averaged per predicted token, so that ½ ΔᵀFΔ ≈ KL(start ‖
tuned) in nats per token and a weight near 1 is meaningful. After an earlier job there is a second penalty for that
job's rows, as in online EWC (Schwarz et al. 2018, arXiv:1805.06370) with the forgetting factor γ. Under LoRA F is
factored and belongs to ΔW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipelines.config.base import Count, NotNegative
from pipelines.config.strategy_registry import STRATEGIES, JobTraits, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.requirements import penalty_conflict
from pipelines.forgetting.strategy import PenaltyStrategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting import fisher_information, importance, memory_estimate, penalty
    from pipelines.forgetting.context import ForgettingContext
    from pipelines.modeling import adapters
    from pipelines.modeling.token_sequences import TokenSequences
else:
    fisher_information = lazy_import("pipelines.forgetting.fisher_information")  # torch
    importance = lazy_import("pipelines.forgetting.importance")  # torch
    memory_estimate = lazy_import("pipelines.forgetting.memory_estimate")  # torch
    penalty = lazy_import("pipelines.forgetting.penalty")  # torch
    adapters = lazy_import("pipelines.modeling.adapters")  # torch


class EwcSettings(StrategySettings):
    """A quadratic penalty keeps weights with high Fisher information near their starting values.

    Kirkpatrick et al. 2017, arXiv:1612.00796; the Fisher information is measured on general text before training.
    """

    weight: NotNegative = Field(
        default=1.0,
        description="The weight λ of the penalty. At 1, one nat per token of predicted KL divergence from the starting "
        "model counts as one nat per token of the tasks' loss.",
    )
    fisher_samples: Count = Field(
        default=256, description="The number of general-text sequences that the Fisher information is averaged over."
    )
    fisher: Literal["factored", "kronecker"] = Field(
        default="factored",
        description="The approximation of the Fisher information under an adapter: the outer product of two vectors, "
        "or Kronecker factors. Without an adapter it is the diagonal.",
    )
    gamma: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        description="The factor γ of online EWC: the penalty for the rows of an earlier job (`continue_from`) is "
        "multiplied by it once per job in between.",
    )

    def unused_keys(self, job: JobTraits) -> Iterator[tuple[str, str]]:
        if self.gamma != 1 and not job.continues_run:
            yield "gamma", "without pipeline.continue_from, since it weighs the penalties of earlier jobs; remove it"
        if self.fisher == "kronecker" and job.adapter is None:
            yield "fisher", "without an adapter, where the Fisher information is diagonal; remove it"


@dataclass(frozen=True)
class FisherText:
    """Text on which the predictions of the starting model are to be preserved."""

    sequences: TokenSequences
    fisher_file: Path
    """The file that caches the Fisher information on `sequences`."""
    factor: float
    """The factor on the weight of the penalty."""


class Ewc(PenaltyStrategy):
    """weight/2 · Σ F (θ − θ₀)², one penalty per text: general text, and the rows of each earlier job."""

    name = "ewc"

    def __init__(self, settings: EwcSettings, texts: Sequence[FisherText], model_fingerprint: str, seed: int) -> None:
        """`model_fingerprint` is the fingerprint of the weights that the job starts from."""
        self.settings, self.texts, self.model_fingerprint, self.seed = settings, texts, model_fingerprint, seed

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.penalties = penalty.PenaltySet(self.name, model, optimizer)
        if not self.settings.weight:
            return
        self._check_memory(model)
        measure = self._measure_lora if self.penalties.has_lora else self._measure_weights
        for text in self.texts:
            importance.compute_if_missing(
                text.fisher_file, self.model_fingerprint, partial(measure, model, text.sequences), self.process_group
            )
        # After all measurements, and one at a time: each may be as large as the model.
        for text in self.texts:
            text_fisher = importance.load_importance(text.fisher_file, self.model_fingerprint)
            self.penalties.add(self.settings.weight * text.factor, text_fisher)

    def _check_memory(self, model: torch.nn.Module) -> None:
        """Raises MachineError if the Fisher information does not fit into memory."""
        is_measured = all(text.fisher_file.exists() for text in self.texts)
        weights = adapters.trainable_parameters(model)
        if not self.penalties.has_lora:
            need = memory_estimate.diagonal_fisher(weights, len(self.texts), is_measured=is_measured)
            subject, advice = "ewc without an adapter", "use an adapter, or replay+distill"
        elif self.settings.fisher == "kronecker":
            pairs = list(penalty.lora_pairs(model))
            need = memory_estimate.kronecker_factors(pairs, len(self.texts), is_measured=is_measured)
            subject = f"fisher: kronecker, with factors of {len(pairs)} matrices,"
            advice = "write fisher: factored, or name fewer adapter.target_modules"
        else:
            return
        need.check(f"pipeline.forgetting.ewc: {subject}", advice, weights[0].device)

    def _measure_lora(self, model: torch.nn.Module, sequences: TokenSequences) -> penalty.Importance:
        is_kronecker = self.settings.fisher == "kronecker"
        return fisher_information.lora_fisher(model, sequences, self.seed, self.process_group, kronecker=is_kronecker)

    def _measure_weights(self, model: torch.nn.Module, sequences: TokenSequences) -> penalty.Importance:
        return fisher_information.weight_fisher(model, sequences, self.seed, self.process_group)


def build(context: ForgettingContext, settings: EwcSettings) -> list[Ewc]:
    def protect(sequences: TokenSequences, factor: float) -> FisherText:
        return FisherText(sequences, context.importance_file("ewc", sequences, settings.fisher), factor)

    texts = [protect(context.sample_general_text(settings.fisher_samples), 1.0)]
    for jobs_between, run in enumerate(context.earlier_runs):
        rows = context.load_split(run, "train")[: settings.fisher_samples]
        texts.append(protect(rows, settings.gamma**jobs_between))
    return [Ewc(settings, texts, context.model_fingerprint, context.seed)]


STRATEGIES.register(
    "ewc",
    StrategySpec(
        title="elastic weight consolidation",
        settings=EwcSettings,
        search_space=SearchSpace("weight", (1.0, 10.0, 0.1, 100.0)),
        build=build,
        conflict=lambda job: penalty_conflict("ewc", job),
        order=30,
    ),
)
