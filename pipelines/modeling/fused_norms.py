"""RMSNorm by torch's fused kernel, for GPUs.

transformers computes RMSNorm in six passes over the hidden states, with a copy in fp32; each pass is a kernel launch.
torch has one kernel each for the forward and the backward pass. Both compute in fp32; results differ by the rounding of
the output.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

MAX_RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""By the dtype of the output, relative to its largest element: two roundings, where the fused kernel has one."""
TRIAL_ROWS = 4


@torch.no_grad()
def fuse_rms_norms(model: torch.nn.Module) -> int:
    """Replaces the forward pass of the model's RMSNorm layers by torch's kernel, in place. Returns their number.

    A layer is replaced if the kernel gives its output on random rows, with its weight w (Llama) or 1 + w (Gemma).
    """
    num_fused = 0
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), _epsilon(module)
        if not type(module).__name__.endswith("RMSNorm") or eps is None or weight is None or weight.dim() != 1:
            continue
        offset = _weight_offset(module, weight, eps)
        if offset is not None:
            module.forward = partial(_rms_norm, module, offset, eps)
            num_fused += 1
    return num_fused


def _epsilon(module: torch.nn.Module) -> float | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if isinstance(eps, float) else None


def _weight_offset(module: torch.nn.Module, weight: torch.Tensor, eps: float) -> float | None:
    """What the module adds to its weight, 0 or 1; None if it is no RMSNorm. Tried with a random weight."""
    generator, own_weight = torch.Generator().manual_seed(0), weight.clone()
    weight.copy_(torch.rand(weight.shape, generator=generator))
    rows = (3 * torch.randn(TRIAL_ROWS, len(weight), generator=generator)).to(weight.device, weight.dtype)
    expected = module(rows)
    matching = [offset for offset in (0.0, 1.0) if _matches(_rms_norm(module, offset, eps, rows), expected)]
    weight.copy_(own_weight)
    return matching[0] if matching else None


def _rms_norm(module: torch.nn.Module, offset: float, eps: float, hidden_states: torch.Tensor) -> torch.Tensor:
    """hidden_states [..., width] / their root mean square, times the weight [width] plus `offset`."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    weight = (weight.float() + offset if offset else weight).to(hidden_states.dtype)
    return F.rms_norm(hidden_states, weight.shape, weight, eps)


def _matches(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    return actual.dtype == expected.dtype and bool(error < MAX_RELATIVE_ERROR.get(expected.dtype, 0.0))
