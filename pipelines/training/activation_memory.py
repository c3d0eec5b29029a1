"""How much memory the activations of a forward and backward pass take: measured, and split into what grows with the
number of tokens and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.modeling.hardware import memory_statistics

CASTS_AND_VIEWS = {"ToCopyBackward0", "TBackward0", "TransposeBackward0", "ViewBackward0", "PermuteBackward0"}
"""torch's names of the operations that copy or rearrange one tensor."""


@dataclass(frozen=True)
class PassMemory:
    """The memory of one forward and backward pass, in bytes."""

    activations: int
    """What grows with the number of tokens. On a CPU, the tensors saved for the backward pass; on a GPU, all memory at
    the peak but `constant` and the gradients of the weights."""
    constant: int
    """Copies of weights in lower precision, which autocast makes once for a pass whatever the number of tokens."""


def measure_pass(model: torch.nn.Module, run: Callable[[], object]) -> PassMemory:
    """Measures the pass `run`, which leaves the gradients of the weights in `grad`."""
    device = next(model.parameters()).device
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    copies: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes = copies if depends_only_on_weights(tensor) else saved
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    gradients_before = _gradient_bytes(model)
    statistics = memory_statistics(device)
    allocated_before = 0 if statistics is None else _start_peak(statistics, device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    constant, activations = sum(copies.values()), sum(saved.values())
    if statistics is not None:
        new_gradients = _gradient_bytes(model) - gradients_before
        peak = statistics.max_memory_allocated(device) - allocated_before - new_gradients - constant
        activations = max(activations, peak)
    return PassMemory(activations, constant)


def depends_only_on_weights(tensor: torch.Tensor) -> bool:
    """Whether a tensor is computed from one trained weight alone: a cast or a view of it.

    Autocast casts each weight once per forward pass, and the product with it saves the copy for the backward pass.
    """
    function: Any = tensor.grad_fn
    while function is not None and type(function).__name__ in CASTS_AND_VIEWS:
        function = function.next_functions[0][0]
    return hasattr(function, "variable")  # AccumulateGrad, the leaf


def _gradient_bytes(model: torch.nn.Module) -> int:
    return sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)


def _start_peak(statistics: Any, device: torch.device) -> int:
    """The bytes allocated on a GPU, from which its peak is measured."""
    statistics.synchronize(device)
    statistics.reset_peak_memory_stats(device)
    return int(statistics.memory_allocated(device))


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes that the optimizer will allocate beside its weights in its first step; 0 after it.

    Adam and its relatives keep two moments per weight, others one or none. Those of bitsandbytes with 8 bits keep a
    byte for each.
    """
    if getattr(optimizer, "is_paged", False):
        return 0
    all_weights = (weight for group in optimizer.param_groups for weight in group["params"])
    weights = [weight for weight in all_weights if weight.requires_grad and not optimizer.state.get(weight)]
    defaults = optimizer.defaults
    if "betas" in defaults:
        moments = 1 if "lion" in type(optimizer).__name__.lower() else 2
    else:
        moments = 1 if defaults.get("momentum") else 0
    is_8bit = "8bit" in type(optimizer).__name__.lower()
    return sum(moments * (weight.numel() if is_8bit else weight.nbytes) for weight in weights)
