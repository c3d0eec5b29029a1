"""Operations on the gradients of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pipelines.modeling.hardware import rng_state, set_rng_state
from pipelines.modeling.process_group import ProcessGroup


def all_reduce_gradients(
    process_group: ProcessGroup,
    weights: Sequence[torch.nn.Parameter],
    *extra: torch.Tensor,
    already_reduced: Sequence[torch.Tensor] = (),
) -> None:
    """Replaces each gradient, and each tensor in `extra`, by its sum over the processes.

    `already_reduced` has the part of each gradient that is the same in all processes. It is not summed again.
    """
    if process_group.world_size == 1:
        return
    for weight in weights:
        # Messages have the same size in all processes, although a process may have had no row that uses a weight.
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    for gradient, reduced in zip(gradients, already_reduced, strict=bool(already_reduced)):
        gradient.sub_(reduced)
    process_group.all_reduce_sum([*extra, *gradients])
    for gradient, reduced in zip(gradients, already_reduced, strict=bool(already_reduced)):
        gradient.add_(reduced)


def copy_gradients(weights: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Returns a copy of each weight's gradient; zeros for a weight without one."""
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone() for weight in weights]


class GradientSnapshot:
    """The gradients of the trained weights and the random number generators at one point of a step."""

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        self.weights = weights
        self.gradients = copy_gradients(weights)
        """A copy of each weight's gradient; zeros for a weight without one."""
        self._has_gradient = [weight.grad is not None for weight in weights]
        self._rng = rng_state()

    def restore(self) -> None:
        """Discards what was added to the gradients since, in place, and what was drawn."""
        for weight, gradient, has_gradient in zip(self.weights, self.gradients, self._has_gradient, strict=True):
            if weight.grad is not None and has_gradient:
                weight.grad.copy_(gradient)
            elif not has_gradient:
                weight.grad = None
        set_rng_state(self._rng)


def gradient_norm(weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Returns the norm of all gradients together, on their device. It is finite if all gradients are."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


def added_gradient_norm(
    weights: Sequence[torch.nn.Parameter], gradients_before: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Returns the norm of what was added to the gradients since they were `gradients_before`, on their device."""
    added = [
        weight.grad - before
        for weight, before in zip(weights, gradients_before, strict=True)
        if weight.grad is not None
    ]
    return torch.nn.utils.get_total_norm(added)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Returns whether no floating-point tensor has a NaN or an infinity, with one read from each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    largest = (
        torch.stack([norm.float() for norm in torch._foreach_norm(group, torch.inf)]) for group in by_device.values()
    )
    return all(bool(torch.isfinite(values).all()) for values in largest)
