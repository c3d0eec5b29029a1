"""Replay: general rows are mixed into the tasks' rows, as a fraction of the supervised tokens.

By default the rows are bundled instructions with the starting model's own answers; after an earlier job the rows of
that job are added. `Replay` also samples the general rows that distillation needs, with or without training on them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipelines.config.base import Fraction, Text
from pipelines.config.strategy_registry import STRATEGIES, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.strategy import Strategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting.context import ForgettingContext
    from pipelines.forgetting.strategies.distill import Distill
    from pipelines.modeling import deferred_scalars, packing, token_sequences
    from pipelines.modeling.deferred_scalars import DeferredScalar
    from pipelines.modeling.token_sequences import TokenSequences
else:
    deferred_scalars = lazy_import("pipelines.modeling.deferred_scalars")  # torch
    packing = lazy_import("pipelines.modeling.packing")  # torch
    token_sequences = lazy_import("pipelines.modeling.token_sequences")  # numpy


class ReplaySettings(StrategySettings):
    """General instructions with the starting model's own answers, mixed into the rows of the tasks."""

    row_files: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("prompt", "completion")}

    fraction: Fraction = Field(default=0.05, description="The fraction of general rows in all supervised tokens.")
    data: Text | None = Field(
        default=None,
        description="A JSON Lines file with `prompt` and `completion`. By default the bundled instructions, answered "
        "by the starting model.",
    )


class Replay(Strategy):
    """Samples general rows such that, over the steps, they hold `fraction` of all supervised tokens.

    It has the losses of `replay` and of `distill` on these rows, or of one of the two.
    A step rarely needs a whole row, so the token debt is carried over to the next step. With `train_on_rows` the rows
    count in the mean loss of the step as the tasks' rows do; with `distill` its KL divergence to the starting model
    is a loss on them.
    """

    name = "replay"
    has_own_rows = True

    def __init__(
        self, rows: TokenSequences, fraction: float, seed: int, *, train_on_rows: bool, distill: Distill | None
    ) -> None:
        self.rows, self.seed = rows, seed
        self.tokens_per_task_token = fraction / (1 - fraction)
        self.train_on_rows, self.distill = train_on_rows, distill
        self.num_drawn = 0
        self.token_debt = 0.0
        self._permutation: tuple[int, list[int]] = (-1, [])  # its number, and the indices of the rows
        self.current_rows: TokenSequences = rows[0:0]

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model

    def begin_step(self, inputs: TokenSequences) -> int:
        self.expected_tokens = self.tokens_per_task_token * inputs.num_supervised_tokens
        self.token_debt += self.expected_tokens
        indices = []
        while self.tokens_per_task_token and self.token_debt > 0:
            indices.append(self._next_index())
            self.token_debt -= self.rows.supervised_lengths[indices[-1]]
        self.current_rows = self.rows.select(indices)
        return self.current_rows.num_supervised_tokens if self.train_on_rows else 0

    def _next_index(self) -> int:
        """Returns the indices of one random permutation of the rows after another."""
        number, position = divmod(self.num_drawn, len(self.rows))
        if self._permutation[0] != number:
            order = list(range(len(self.rows)))
            random.Random(f"{self.seed}/replay/{number}").shuffle(order)
            self._permutation = (number, order)
        self.num_drawn += 1
        return self._permutation[1][position]

    def losses_on_own_rows(self, loss_denominator: int) -> Iterator[torch.Tensor]:
        # Here, since the trainer may request the losses again.
        self.loss_sums: dict[str, list[DeferredScalar]] = {"replay": [], "distill": []}
        own_rows = self.process_group.shard(self.current_rows)
        batches = token_sequences.micro_batches(own_rows, self.micro_batch_size)
        for rows, is_real in self.process_group.lockstep_batches(batches, self.rows[0:1]):
            if self.distill is None or not self.distill.settings.weight:
                if self.train_on_rows:
                    yield self._replay_loss(packing.token_losses(self.model, rows), loss_denominator, is_real)
                continue
            logits, targets = packing.supervised_logits(self.model, rows)
            # Divided by the expected tokens of a step, not by the sampled ones: over the steps that is the mean over
            # general tokens, which is the unit of the weight α.
            kl_sum = self.distill.kl_to_reference(rows, logits).sum()
            loss = is_real * (self.distill.settings.weight * kl_sum / self.expected_tokens)
            if is_real:
                self.loss_sums["distill"].append(deferred_scalars.DeferredScalar(kl_sum))
            if self.train_on_rows:
                losses = packing.cross_entropy(logits, targets)
                loss = loss + self._replay_loss(losses, loss_denominator, is_real)
            yield loss

    def _replay_loss(self, losses: torch.Tensor, loss_denominator: int, is_real: bool) -> torch.Tensor:
        """Returns the contribution of these rows to the step's mean loss, 0 for a dummy batch."""
        if is_real:
            self.loss_sums["replay"].append(deferred_scalars.DeferredScalar(losses.detach().sum()))
        return is_real * (losses.sum() / loss_denominator)

    def metrics(self) -> dict[str, float]:
        """Returns means over the general tokens of the step."""
        tokens = self.current_rows.num_supervised_tokens
        sums = [sum(map(float, parts)) for parts in self.loss_sums.values()]
        totals = self.process_group.all_reduce_scalars(sums)
        return {name: total / tokens for name, total in zip(self.loss_sums, totals, strict=True) if total and tokens}

    def state_dict(self) -> dict[str, Any]:
        return {"position": {"num_drawn": self.num_drawn, "token_debt": self.token_debt}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_drawn, self.token_debt = state["position"]["num_drawn"], state["position"]["token_debt"]


def build(context: ForgettingContext, settings: ReplaySettings) -> list[Replay]:
    rows = context.general_answers if settings.data is None else context.load_replay_rows(Path(settings.data))
    rows = token_sequences.TokenSequences.concatenate(
        rows, *(context.load_split(run, "train") for run in context.earlier_runs)
    )
    distill = context.strategies_by_name.get("distill")
    if distill is not None and not distill.applies_to_general_rows:
        distill = None
    return [Replay(rows, settings.fraction, context.seed, train_on_rows=True, distill=distill)]


STRATEGIES.register(
    "replay",
    StrategySpec(
        title="replay",
        settings=ReplaySettings,
        search_space=SearchSpace("fraction", (0.05, 0.1, 0.2, 0.02)),
        build=build,
        order=20,
    ),
)
