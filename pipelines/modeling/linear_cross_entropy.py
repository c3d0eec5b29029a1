"""Chunked linear cross entropy: the loss from the last hidden states, without holding all logits at once.

Logits and their gradient take [positions, vocabulary], far more memory than the other activations of those positions.
Here the forward pass computes the gradient with respect to the hidden states together with each chunk's loss, then
drops the chunk's logits. torch 2.13 has the same as `torch.nn.functional.linear_cross_entropy`; torchtune has it as
`LinearCrossEntropyLoss`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

MAX_LOGITS_PER_CHUNK = 2**23
MIN_CHUNK_TOKENS = 128
"""Positions per chunk whatever the vocabulary: products of fewer are slow."""


def linear_cross_entropy(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """The cross entropy of `head(hidden)` and `targets` in nats: fp32 [positions].

    hidden [positions, width]; targets int64 [positions]. The gradient reaches `hidden` only, so `head` must be frozen.
    """
    weight: torch.Tensor = head.weight
    bias = head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        # Once, instead of once per chunk.
        weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
    frozen_bias = None if bias is None else bias.detach()
    return torch.as_tensor(_ChunkedCrossEntropy.apply(hidden, weight.detach(), frozen_bias, targets))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        losses, gradients = [], []
        chunk_size = max(MIN_CHUNK_TOKENS, MAX_LOGITS_PER_CHUNK // len(weight))
        for chunk, chunk_targets in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            logits = F.linear(chunk, weight, bias)
            logits_fp32 = logits.float()
            losses.append(F.cross_entropy(logits_fp32, chunk_targets, reduction="none"))
            if ctx.needs_input_grad[0]:
                gradient = _logits_gradient(logits_fp32, chunk_targets, losses[-1])
                gradients.append((gradient.to(logits.dtype) @ weight).to(hidden.dtype))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None


def _logits_gradient(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """The gradient of the summed loss by the logits: softmax(logits), less one at the target."""
    index = targets[:, None]
    log_normalizer = logits.gather(1, index) + losses[:, None]
    probabilities = (logits - log_normalizer).exp_()
    return probabilities.scatter_add_(1, index, probabilities.new_full((len(logits), 1), -1))
