"""Operations on the gradients of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

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


def gradient_norm(weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Returns the norm of all gradients together, on their device. It is finite if all gradients are."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


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
