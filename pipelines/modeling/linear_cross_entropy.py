"""Cross entropy from the last hidden states, a few positions at a time: their logits are never held together.

Logits take a vocabulary's worth of numbers for each position, and more for their gradient: far more than all else that is
kept of it. Here each part's gradient by the hidden state is worked out with its loss. From torch 2.13 on
`torch.nn.functional.linear_cross_entropy` does the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

MAX_LOGITS_PER_CHUNK, MIN_CHUNK_TOKENS = 2**23, 128
"""Logits at once, and positions whatever the vocabulary: fewer would make slow products."""


def linear_cross_entropy(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of `head(hidden)` [positions, vocabulary] and `targets` int64 [positions]: fp32 [positions].

    Its gradient reaches `hidden` [positions, width]; `head` must be frozen where gradients are asked for.
    """
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        # Once, not once a part.
        weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
    return torch.as_tensor(_Losses.apply(hidden, weight.detach(), None if bias is None else bias.detach(), targets))


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        losses, gradients = [], []
        positions = max(MIN_CHUNK_TOKENS, MAX_LOGITS_PER_CHUNK // len(weight))
        for some, its_targets in zip(hidden.split(positions), targets.split(positions), strict=True):
            logits = F.linear(some, weight, bias)
            numbers = logits.float()
            losses.append(F.cross_entropy(numbers, its_targets, reduction="none"))
            if ctx.needs_input_grad[0]:
                # By the logits: what is predicted, less one at the target.
                numbers = (numbers - (numbers.gather(1, its_targets[:, None]) + losses[-1][:, None])).exp_()
                numbers.scatter_add_(1, its_targets[:, None], numbers.new_full((len(some), 1), -1))
                gradients.append((numbers.to(logits.dtype) @ weight).to(hidden.dtype))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None
