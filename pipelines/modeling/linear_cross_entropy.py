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
"""On a CPU: a chunk and its gradient stay near the caches."""
MAX_LOGITS_PER_CHUNK_ON_GPU = 2**26
"""256 MiB in fp32: 441 positions at a vocabulary of 152,000. On an H100, 512 positions are as fast as 2,048 and take
3 GiB less of a step with 8,192."""
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
        is_on_cpu = hidden.device.type == "cpu"
        max_logits = MAX_LOGITS_PER_CHUNK if is_on_cpu else MAX_LOGITS_PER_CHUNK_ON_GPU
        chunk_size = max(MIN_CHUNK_TOKENS, max_logits // len(weight))
        losses_and_gradient = _losses_and_gradient if is_on_cpu else _losses_and_gradient_on_gpu
        for chunk, chunk_targets in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            logits = F.linear(chunk, weight, bias)
            chunk_losses, gradient = losses_and_gradient(logits, chunk_targets, ctx.needs_input_grad[0])
            losses.append(chunk_losses)
            if gradient is not None:
                gradients.append((gradient.to(logits.dtype) @ weight).to(hidden.dtype))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None


def _losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cross entropy of each position, and the gradient of the sum by the logits: softmax(logits), less one at the
    target. Both are fp32, [positions] and [positions, vocabulary]."""
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    if not needs_gradient:
        return losses, None
    index = targets[:, None]
    log_normalizer = logits.gather(1, index) + losses[:, None]
    probabilities = (logits - log_normalizer).exp_()
    return losses, probabilities.scatter_add_(1, index, probabilities.new_full((len(logits), 1), -1))


def _losses_and_gradient_on_gpu(
    logits: torch.Tensor, targets: torch.Tensor, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`_losses_and_gradient` with fewer passes over the logits, which limit its speed on a GPU."""
    index = targets[:, None]
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    losses = log_probabilities.gather(1, index).squeeze(1).neg()
    if not needs_gradient:
        return losses, None
    probabilities = log_probabilities.exp_()
    return losses, probabilities.scatter_add_(1, index, probabilities.new_full((len(logits), 1), -1))
