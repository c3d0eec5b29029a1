"""Replay: general rows among the tasks' own, a given share of the supervised tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from pipelines.forgetting.distill import Distill
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.token_sequences import TokenSequences, micro_batches

MICRO_BATCH = 8


class Replay(Strategy):
    """Draws general rows so that, over the steps, they hold `share` of all supervised tokens.

    A step rarely needs a whole row, so what is owed is carried over to the next. With `train_on_rows` the rows count in the
    step's mean as the tasks' rows do; with `distill` the model is held to the base's answers on them.
    """

    name = "replay"

    def __init__(
        self, rows: TokenSequences, share: float, seed: int, *, train_on_rows: bool, distill: Distill | None
    ) -> None:
        self.rows, self.ratio, self.seed = rows, share / (1 - share), seed
        self.train_on_rows, self.distill = train_on_rows, distill
        self.num_drawn = 0
        self.token_debt = 0.0
        self._epoch: tuple[int, list[int]] = (-1, [])
        self.current_rows: TokenSequences = rows[0:0]

    def sample_rows(self, inputs: TokenSequences) -> int:
        self.expected = self.ratio * inputs.supervised_tokens
        self.token_debt += self.expected
        numbers = []
        while self.ratio and self.token_debt > 0:
            numbers.append(self._next())
            self.token_debt -= self.rows.supervised_lengths[numbers[-1]]
        self.current_rows = self.rows.select(numbers)
        self.sums = {"replay": 0.0, "distill": 0.0}
        return self.current_rows.supervised_tokens if self.train_on_rows else 0

    def _next(self) -> int:
        """Every row once before any comes twice, each time in another order."""
        lap, place = divmod(self.num_drawn, len(self.rows))
        if self._epoch[0] != lap:
            order = list(range(len(self.rows)))
            random.Random(f"{self.seed}/replay/{lap}").shuffle(order)
            self._epoch = (lap, order)
        self.num_drawn += 1
        return self._epoch[1][place]

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model

    def extra_losses(self, supervised: int) -> Iterator[torch.Tensor]:
        for rows, counts in self.process_group.lockstep_batches(
            micro_batches(self.process_group.shard(self.current_rows), MICRO_BATCH), self.rows[0:1]
        ):
            if self.distill is None or not self.distill.settings.weight:
                if self.train_on_rows:
                    yield self._learned(token_losses(self.model, rows), supervised, counts)
                continue
            logits, targets = supervised_logits(self.model, rows)
            # Divided by the tokens that a step should have, not by those it happens to have: over the steps that
            # is the mean over general tokens, which α is measured in.
            each = self.distill.general(rows, logits)
            term = self.distill.settings.weight * each.sum() / (self.expected if counts else math.inf)
            self.sums["distill"] += float(each.sum()) * counts
            if self.train_on_rows:
                losses = F.cross_entropy(logits, targets, reduction="none").float()
                term = term + self._learned(losses, supervised, counts)
            yield term

    def _learned(self, losses: torch.Tensor, supervised: int, counts: bool) -> torch.Tensor:
        """The rows' share of the step's mean loss."""
        self.sums["replay"] += float(losses.sum()) * counts
        return losses.sum() / (supervised if counts else math.inf)

    def metrics(self) -> dict[str, float]:
        """Means over the step's general tokens."""
        tokens = self.current_rows.supervised_tokens
        sums = dict(zip(self.sums, self.process_group.all_reduce_scalars(list(self.sums.values())), strict=True))
        return {name: value / tokens for name, value in sums.items() if value and tokens}

    def state_dict(self) -> dict[str, Any]:
        return {"position": {"drawn": self.num_drawn, "owed": self.token_debt}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_drawn, self.token_debt = state["position"]["drawn"], state["position"]["owed"]
