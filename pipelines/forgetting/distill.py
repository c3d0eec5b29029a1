"""Distillation: what the base, or a larger teacher, would have said, as a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pipelines.config.forgetting import Distill as Settings
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_sequences import TokenSequences


@dataclass(frozen=True)
class TopK:
    """A teacher's distributions, cut: `tokens` int [positions, k], `log_probs` fp32 [positions, k], most likely first."""

    tokens: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
        log_probs, tokens = F.log_softmax(logits.float() / temperature, dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
        return cls(tokens, log_probs)

    def kl_divergence(self, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """T²·KL over the k tokens and one bucket for all others. Without the bucket a student that equals its teacher
        would still be pushed."""
        found = F.log_softmax(student.float() / temperature, dim=-1).gather(-1, self.tokens)
        kept = (self.log_probs.exp() * (self.log_probs - found)).sum(dim=-1)
        rest_wanted, rest_found = _rest(self.log_probs), _rest(found)
        return temperature**2 * (kept + rest_wanted.exp() * (rest_wanted - rest_found))


def _rest(log_probs: torch.Tensor) -> torch.Tensor:
    """log(1 − Σ p), bounded away from log 0 by what fp32 can tell."""
    return torch.log1p(-log_probs.exp().sum(dim=-1).clamp(max=1 - 1e-6))


class Distill(Strategy):
    """α·KL to the base on general rows (through `Replay`, which draws them), on the tasks' rows, or on both."""

    name = "distill"

    def __init__(self, settings: Settings, teacher_topk: Mapping[bytes, TopK] | None = None) -> None:
        """`teacher_topk`: another teacher's distributions for the tasks' rows, by the bytes of a row's tokens."""
        self.settings, self.teacher_topk = settings, teacher_topk
        self.needs_logits = bool(settings.weight) and (settings.apply_to != "general" or teacher_topk is not None)
        self.task_divergence = 0.0

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.teacher_topk is None:
            self.base = ReferenceModel(model)

    def sample_rows(self, inputs: TokenSequences) -> int:
        self.reset_step()
        return 0

    def reset_step(self) -> None:
        self.task_divergence = 0.0

    def general(self, rows: TokenSequences, logits: torch.Tensor) -> torch.Tensor:
        """T²·KL of each supervised token of general rows: [rows.supervised_tokens]."""
        return kl_divergence(self.base.logits(rows), logits, self.settings.temperature)

    def task_loss(
        self, rows: TokenSequences, logits: torch.Tensor, supervised: int, weight: float = 1.0
    ) -> torch.Tensor:
        if self.teacher_topk is None:
            each = kl_divergence(self.base.logits(rows), logits, self.settings.temperature)
        else:
            each = torch.cat(
                [
                    self.teacher_topk[rows.key(index)].kl_divergence(part, self.settings.temperature)
                    for index, part in enumerate(logits.split(rows.supervised_lengths))
                ]
            )
        term = weight * (self.settings.weight * each.sum() / supervised)
        self.task_divergence += float(term)
        return term

    def metrics(self) -> dict[str, float]:
        (divergence,) = self.process_group.all_reduce_scalars([self.task_divergence])
        return {"distill on tasks": divergence} if divergence else {}
